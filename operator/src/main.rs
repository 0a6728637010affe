//! The operator's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use doorman_crds::DoormanGateway;
use doorman_operator::operator::{self, Options};
use doorman_operator::render::{self, Installation};
use tracing_subscriber::filter::LevelFilter;

/// The operator of Doorman for Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    logs: Logs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run in a cluster.
    Run {
        #[command(flatten)]
        installed: Installed,
        /// Name of the operator's pod, for leader election.
        #[arg(long, env = "POD_NAME", value_name = "NAME")]
        pod: String,
        /// Port of probes and metrics.
        #[arg(long, env = "DOORMAN_HTTP_PORT", default_value_t = 8080)]
        port: u16,
    },
    /// Print what a DoormanGateway consists of, without a cluster.
    Render {
        #[command(flatten)]
        installed: Installed,
        /// YAML file with one DoormanGateway.
        file: PathBuf,
    },
}

/// What the operator was installed with.
#[derive(Args)]
struct Installed {
    /// Image of the gateway where a DoormanGateway names none.
    #[arg(long, env = "DOORMAN_GATEWAY_IMAGE", value_name = "IMAGE")]
    gateway_image: String,
    /// When that image is pulled.
    #[arg(long, env = "DOORMAN_GATEWAY_IMAGE_PULL_POLICY", value_name = "POLICY")]
    gateway_image_pull_policy: Option<String>,
    /// ClusterRole that lets a gateway read its definitions.
    #[arg(long, env = "DOORMAN_READER_CLUSTER_ROLE", default_value = "doorman-gateway-reader", value_name = "NAME")]
    reader_cluster_role: String,
    /// ClusterRole that lets a gateway write definitions, bound where a spec asks for it.
    #[arg(long, env = "DOORMAN_WRITER_CLUSTER_ROLE", default_value = "doorman-gateway-writer", value_name = "NAME")]
    writer_cluster_role: String,
    /// Namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE", default_value = "doorman-system", value_name = "NAMESPACE")]
    namespace: String,
}

impl From<Installed> for Installation {
    fn from(installed: Installed) -> Self {
        Self {
            image: installed.gateway_image,
            pull_policy: installed.gateway_image_pull_policy.filter(|policy| !policy.is_empty()),
            namespace: installed.namespace,
            reader_cluster_role: installed.reader_cluster_role,
            writer_cluster_role: installed.writer_cluster_role,
        }
    }
}

#[derive(Args)]
struct Logs {
    /// Form of log lines.
    #[arg(long, env = "LOG_FORMAT", value_enum, ignore_case = true, default_value_t = LogFormat::Json, global = true)]
    log_format: LogFormat,
    /// Least level that is logged.
    #[arg(long, env = "LOG_LEVEL", value_enum, ignore_case = true, default_value_t = LogLevel::Info, global = true)]
    log_level: LogLevel,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Plain,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logs(&arguments.logs);
    let result = match arguments.command {
        Command::Run { installed, pod, port } => {
            let options = Options { installation: installed.into(), identity: pod, port };
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(anyhow::Error::from)
                .and_then(|runtime| runtime.block_on(operator::run(options)))
        }
        Command::Render { installed, file } => print(&installed.into(), &file),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logs(logs: &Logs) {
    let level = match logs.log_level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match logs.log_format {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Plain => lines.init(),
    }
}

fn print(installation: &Installation, file: &std::path::Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
    let gateway: DoormanGateway =
        serde_yaml::from_str(&text).with_context(|| format!("{} is not a DoormanGateway", file.display()))?;
    let errors = doorman_crds::gateway::validate(&gateway.spec);
    if !errors.is_empty() {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::bail!("{}: {}", file.display(), lines.join("; "));
    }
    print!("{}", render::to_yaml(&render::render(&gateway, installation, &render::Secrets::new())));
    Ok(())
}
