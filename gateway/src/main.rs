//! `doorman-gateway`: settings, wiring, run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use doorman_gateway::server::{self, Source};
use doorman_gateway::settings::{self, Settings};
use doorman_gateway::telemetry::logs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Doorman's gateway. Settings come from the environment, see docs/settings.md.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Serve the manifests of this folder.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (settings, warnings) = match Settings::load(settings::Source::from_process()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("doorman-gateway does not start:\n{errors}");
            return ExitCode::from(78);
        }
    };
    logs::start(settings.logs.format, settings.logs.level);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let started = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(server::run(settings, Source::Directory(arguments.manifests))));
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("doorman-gateway does not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}
