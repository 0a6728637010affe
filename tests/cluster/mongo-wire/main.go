// Command mongo-wire answers the MongoDB wire protocol from SQLite files: FerretDB 1.24, which Debian does not package.
// It stands in for MongoDB where no real server can be had; ../README.md says what only a real one would show.
//
// Build it with -tags ferretdb_sqlite, which is how FerretDB includes that backend.
package main

import (
	"context"
	"flag"
	"log"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:27017", "address to listen on; empty for TLS only")
	data := flag.String("data", "", "existing folder for the databases' files (required)")
	tlsListen := flag.String("tls-listen", "", "address to listen on with TLS")
	tlsCert := flag.String("tls-cert", "", "file with the server's certificate")
	tlsKey := flag.String("tls-key", "", "file with its key")
	tlsCA := flag.String("tls-ca", "", "file with the CA of client certificates; empty asks for none")
	flag.Parse()
	if info, err := os.Stat(*data); err != nil || !info.IsDir() {
		log.Fatalf("mongo-wire: --data %q is not a folder", *data)
	}

	// Below errors it logs every connection that ends early, as each probe of a pod does.
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	// Beside the databases: a pod may have nowhere else to write. One of a process that was killed is in the way.
	socket := filepath.Join(*data, ".socket")
	_ = os.Remove(socket)
	server, err := ferretdb.New(&ferretdb.Config{
		Listener: ferretdb.ListenerConfig{
			Unix: socket, TLS: *tlsListen, TLSCertFile: *tlsCert, TLSKeyFile: *tlsKey, TLSCAFile: *tlsCA,
		},
		Logger:    logger,
		Handler:   "sqlite",
		SQLiteURL: (&url.URL{Scheme: "file", Opaque: *data + "/"}).String(),
	})
	if err != nil {
		log.Fatalf("mongo-wire: %v", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log.Printf("mongo-wire: serving %s %s from %s", *listen, *tlsListen, *data)
	if *listen != "" {
		go func() {
			if err := serveAtomically(ctx, *listen, socket); err != nil {
				log.Fatalf("mongo-wire: %v", err)
			}
		}()
	}
	if err := server.Run(ctx); err != nil {
		log.Printf("mongo-wire: %v", err)
	}
}
