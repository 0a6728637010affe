//! `doorman-gateway`: settings, wiring, run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use doorman_crds::gateway::Namespaces;
use doorman_crds::selection::Selection;
use doorman_gateway::server::{self, Source};
use doorman_gateway::settings::{self, ApiNamespaces, Settings};
use doorman_gateway::telemetry::logs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Doorman's gateway. Settings come from the environment, see docs/settings.md.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Serve the manifests of this folder. Without it: the objects that a DoormanGateway takes in a cluster, where the settings
    /// name one, else what is defined over the platform API.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (settings, warnings) = match Settings::load(settings::Source::from_process()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("doorman-gateway does not start:\n{errors}");
            for warning in &errors.warnings {
                eprintln!("  (warning) {warning}");
            }
            return ExitCode::from(78);
        }
    };
    let logs = logs::start(&settings.logs);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let started =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
            |runtime| {
                let source = source(arguments.manifests, &settings)?;
                runtime.block_on(server::run(settings, source, logs.clone()))
            },
        );
    logs.flush();
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("doorman-gateway does not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A folder when one is given, else the cluster on behalf of the DoormanGateway the settings name, if they do.
fn source(manifests: Option<PathBuf>, settings: &Settings) -> anyhow::Result<Source> {
    if let Some(folder) = manifests {
        return Ok(Source::Directory(folder));
    }
    let own = &settings.definitions;
    let (name, namespace) = match (&own.gateway_name, &own.gateway_namespace) {
        (Some(name), Some(namespace)) => (name, namespace),
        // In a pod it is more likely that they got lost, and an empty gateway would be taken for a good one.
        (None, None) if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => anyhow::bail!(
            "nothing to serve: set DOORMAN_GATEWAY_NAME and DOORMAN_GATEWAY_NAMESPACE, or give --manifests DIR"
        ),
        (None, None) => return Ok(Source::Documents),
        _ => anyhow::bail!("DOORMAN_GATEWAY_NAME and DOORMAN_GATEWAY_NAMESPACE go together; set both or neither"),
    };
    let namespaces = match own.namespaces {
        ApiNamespaces::Same => Namespaces::Same,
        ApiNamespaces::All => Namespaces::All,
        ApiNamespaces::Selector => Namespaces::Selector,
    };
    Ok(Source::Kubernetes(Selection {
        namespace: namespace.clone(),
        name: name.clone(),
        namespaces,
        namespace_selector: own.namespace_selector.clone(),
        selector: own.selector.clone(),
    }))
}
