package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"
)

// FerretDB on SQLite reads a document and writes it back in two steps, so that of two changes at once one can be lost.
// MongoDB never does that to a single document. What follows stands before FerretDB and lets it see one command that
// writes at a time; everything else passes as it comes.

const (
	headerSize  = 16
	longest     = 48_000_000
	opMsg       = 2013
	moreToCome  = 1 << 1
	flagsSize   = 4
	documentOne = 0
)

// writes are commands that change documents.
var writes = map[string]bool{"insert": true, "update": true, "delete": true, "findAndModify": true, "findandmodify": true}

// one is held while such a command runs.
var one sync.Mutex

func serveAtomically(ctx context.Context, address, socket string) error {
	// Whoever can connect is answered.
	for ctx.Err() == nil {
		if probe, err := net.Dial("unix", socket); err == nil {
			_ = probe.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	for {
		client, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer client.Close()
			if err := pass(client, socket); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
				log.Printf("mongo-wire: a connection ended: %v", err)
			}
		}()
	}
}

func pass(client net.Conn, socket string) error {
	server, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer server.Close()
	for {
		request, err := message(client)
		if err != nil {
			return err
		}
		if err := exchange(client, server, request); err != nil {
			return err
		}
	}
}

func exchange(client, server net.Conn, request []byte) error {
	var replies [][]byte
	ask := func() error {
		if writes[command(request)] {
			one.Lock()
			defer one.Unlock()
		}
		if _, err := server.Write(request); err != nil {
			return err
		}
		if flags(request)&moreToCome != 0 {
			return nil
		}
		for {
			reply, err := message(server)
			if err != nil {
				return err
			}
			replies = append(replies, reply)
			if flags(reply)&moreToCome == 0 {
				return nil
			}
		}
	}
	if err := ask(); err != nil {
		return err
	}
	for _, reply := range replies {
		if _, err := client.Write(reply); err != nil {
			return err
		}
	}
	return nil
}

func message(from io.Reader) ([]byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(header[:4])
	if size < headerSize || size > longest {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	whole := make([]byte, size)
	copy(whole, header[:])
	_, err := io.ReadFull(from, whole[headerSize:])
	return whole, err
}

func flags(message []byte) uint32 {
	if binary.LittleEndian.Uint32(message[12:16]) != opMsg || len(message) < headerSize+flagsSize {
		return 0
	}
	return binary.LittleEndian.Uint32(message[headerSize:])
}

// command is the name of the first member of the first document, which is what a command is called by.
func command(message []byte) string {
	const name = headerSize + flagsSize + 1 + 4 + 1
	if binary.LittleEndian.Uint32(message[12:16]) != opMsg || len(message) < name || message[headerSize+flagsSize] != documentOne {
		return ""
	}
	for end := name; end < len(message); end++ {
		if message[end] == 0 {
			return string(message[name:end])
		}
	}
	return ""
}
