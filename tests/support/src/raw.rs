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
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            answer(&mut stream);
        }
    });
    Ok(address)
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
