//! The load generator as a program: exit code 0 when every request got its correct answer, 1 when any failed, 2 when
//! the load could not be started.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use doorman_tests::load::{self, Expectation, Plan};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An open-loop HTTP/1.1 load: fixed rate, latency from the time each request was due, every failure counted.
///
/// SIGINT and SIGTERM end it early; what became due by then is finished and reported.
#[derive(Parser)]
#[command(name = "loadgen", version)]
struct Arguments {
    /// URL to call; repeat it to call several in turn.
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// File with one URL a line, called in turn; behind it may be headers for it alone, each behind a tab.
    #[arg(long, value_name = "FILE")]
    urls_file: Option<PathBuf>,
    /// Request method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// Request header; repeat it for several.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = load::header)]
    headers: Vec<(String, String)>,
    /// Request body.
    #[arg(long)]
    body: Option<String>,
    /// Requests a second; 0 sends each as soon as the last answer came.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    rate: f64,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Seconds to run.
    #[arg(long, value_name = "S", value_parser = not_negative)]
    duration: Option<f64>,
    /// Requests to send.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Seconds until a request without a complete answer has failed.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = not_negative)]
    timeout: f64,
    /// Status of a correct answer; repeat it to allow several.
    #[arg(long = "expect-status", value_name = "STATUS", default_values_t = [200])]
    expect_statuses: Vec<u16>,
    /// Body length of a correct answer.
    #[arg(long, value_name = "BYTES")]
    expect_length: Option<u64>,
    /// Text in the body of a correct answer.
    #[arg(long, value_name = "TEXT")]
    expect_body_contains: Option<String>,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let as_json = arguments.json;
    let mut running = load::start(plan(arguments)?)?;
    let report = tokio::select! {
        report = running.report() => report,
        _ = terminate.recv() => running.finish().await,
        _ = interrupt.recv() => running.finish().await,
    };
    if as_json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(report.failed == 0)
}

fn plan(arguments: Arguments) -> anyhow::Result<Plan> {
    let mut urls = arguments.urls;
    if let Some(file) = arguments.urls_file {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        urls.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let mut plan = Plan::with_request(&urls, &arguments.method, &arguments.headers, arguments.body.as_deref())?
        .at(arguments.rate, arguments.connections.into());
    plan.duration = arguments.duration.map(Duration::from_secs_f64);
    plan.requests = arguments.requests;
    plan.timeout = Duration::from_secs_f64(arguments.timeout);
    plan.expect = Expectation {
        statuses: arguments.expect_statuses,
        length: arguments.expect_length,
        body_contains: arguments.expect_body_contains,
    };
    Ok(plan)
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number")?;
    if number.is_finite() && (0.0..1e9).contains(&number) { Ok(number) } else { Err("not a sensible number".into()) }
}
