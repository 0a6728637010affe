//! The sample upstream as a program, for the demo, end-to-end tests and the benchmark.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use doorman_tests::upstream;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A small HTTP/1.1 and HTTP/2 server whose answers are known in advance.
#[derive(Parser)]
#[command(name = "sample-upstream", version)]
struct Arguments {
    /// Port to listen on; 0 takes any free one.
    #[arg(long, default_value_t = 7000)]
    port: u16,
    /// Address to listen on; 0.0.0.0 for all, as a container needs.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Speak TLS with the `tls.crt` and `tls.key` of this folder; with a `ca.crt` in it, clients must show a certificate of it.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let address = SocketAddr::new(arguments.address, arguments.port);
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("sample upstream listening on {}", listener.local_addr()?);
    let tls = arguments.tls.as_deref().map(upstream::Tls::load).transpose().context("no TLS")?;
    upstream::run(listener, tls, stop_signal())?;
    Ok(())
}

async fn stop_signal() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a handler for SIGINT");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
