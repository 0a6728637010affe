//! Upstreams that write bytes as a test says, right or wrong.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

/// Answers each request, once its head is read, in this way, and closes.
///
/// # Errors
/// When it can't listen.
pub fn serve(mut answer: impl FnMut(&mut TcpStream) + Send + 'static) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // What is answered doesn't depend on whether it came to its end.
            drop(read_head(&mut stream));
            answer(&mut stream);
        }
    });
    Ok(address)
}

/// Reads a head, with the empty line that ends it and nothing behind that.
///
/// # Errors
/// When it doesn't come to its end.
pub fn read_head(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

/// Answers each request with these bytes.
///
/// # Errors
/// When it can't listen.
pub fn fixed(answer: &[u8]) -> io::Result<SocketAddr> {
    let answer = answer.to_vec();
    // A client that goes away is its own business.
    serve(move |stream| drop(stream.write_all(&answer)))
}

/// An answer of this status line and these fields, and of a body whose length it tells.
pub fn answer_of(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
