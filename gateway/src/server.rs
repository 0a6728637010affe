//! From settings to a running gateway and back to an orderly end.
//!
//! Order of a start: definitions are read and compiled, then sockets open; so nobody is told 404 by a gateway that has
//! not looked yet. Order of an end: readiness off, `DOORMAN_DRAIN_SECONDS` of further service with `Connection: close`,
//! listening ends, calls in flight get `DOORMAN_SHUTDOWN_SECONDS`; in memory mode, what is left then is dumped.

use std::collections::HashSet;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use doorman_crds::revision::{Rejection, RevisionReport, Stores};
use doorman_crds::selection::Selection;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use crate::accounting::Accounts;
use crate::admin;
use crate::definitions::Definitions;
use crate::definitions::directory::Directory;
use crate::definitions::documents::Stored;
use crate::definitions::kubernetes;
use crate::definitions::writer::{Writer, Writing};
use crate::discovery::Discovery;
use crate::identity::Identity;
use crate::listen::tls::Certificate;
use crate::listen::{self, Phase};
use crate::persistence::Persistence;
use crate::pipeline::{Gateway, Gzip};
use crate::platform::{self, Platform};
use crate::reload;
use crate::routings::Routings;
use crate::security::Security;
use crate::settings::{PlatformDefinitions, Settings};
use crate::snapshot::{Compiler, Snapshot};
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::logs::Logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::Traffic;
use crate::upstream::{PoolOptions, Pools};

/// How long the end of the process waits for changes whose clients have gone.
const CHANGES: Duration = Duration::from_secs(5);

/// Where definitions come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of manifests, and the document store.
    Directory(PathBuf),
    /// The document store alone.
    Documents,
    /// The objects of the cluster this gateway takes.
    Kubernetes(Selection),
}

/// Runs the gateway until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// What kept it from starting.
pub async fn run(settings: Settings, source: Source, logs: Arc<Logs>) -> anyhow::Result<()> {
    // In a cluster, loopback is the pod itself: calling it would go round every rule.
    let is_alone = !matches!(source, Source::Kubernetes(_));
    let (served, is_served) = watch::channel(());
    let writing = writing(&source, &settings, is_served).await?;
    let definitions = follow(source, &settings).await?;

    let pools = Pools::new(PoolOptions {
        max_connections: settings.upstream.max_connections.get() as usize,
        max_idle: settings.upstream.max_idle as usize,
        idle_life: settings.upstream.idle_life,
        http2: settings.upstream.http2,
        allow_loopback: is_alone,
    });
    let (port, admin_port) = (settings.server.port, settings.server.admin_port);
    let (drain, shutdown) = (settings.server.drain, settings.server.shutdown);
    let certificate =
        settings.server.tls_files().map(|files| Certificate::load(files.certificate, files.key)).transpose()?;
    let store = Arc::new(Store::open(&settings).await?);
    let metrics = Metrics::with(store.fallbacks(), logs.dropped()).showing(pools.clone());
    let compiler = Compiler::new(pools.clone()).counting(Arc::clone(&metrics.apis));
    let mut health = store.health_changes();
    // In a cluster, the cluster holds the definitions.
    let stored = is_alone.then(|| Stored::new(store.clone()));
    let identity = Arc::new(Identity::new(&settings, store.clone())?);
    let sealer = Arc::new(settings.keys.sealer()?);
    let accounts = Arc::new(Accounts::new(&settings, identity.clone(), sealer.clone()));
    let discovery = Arc::new(Discovery::new(pools.clone(), settings.upstream.clone(), &store));
    let routings = Arc::new(Routings::new(&store, pools));
    let settings = Arc::new(settings);
    let security = Arc::new(Security::new(&settings));
    let persistence = Arc::new(Persistence::new(settings.clone(), store, security.clone()));
    persistence.restore_at_start().await?;
    let kept = persistence.clone();
    tokio::spawn(async move { kept.maintain().await });
    let (ready, is_ready) = watch::channel(true);
    tokio::spawn(reload::follow(settings.clone(), identity.store())?);
    let restart = Arc::new(Notify::new());
    let snapshot: Arc<ArcSwap<Snapshot>> = Arc::default();
    let store = identity.store().clone();
    let traffic = if store.shares_traffic() { Traffic::shared(store) } else { Traffic::open(logs.folder()) };
    let traffic = Arc::new(traffic);
    tokio::spawn(Arc::clone(&traffic).maintain());
    let changes = TaskTracker::new();
    let platform = Platform {
        telemetry: Telemetry {
            logs: Arc::clone(&logs),
            traffic: Arc::clone(&traffic),
            connections: metrics.connections.clone(),
            started: Instant::now(),
        },
        settings: settings.clone(),
        identity: identity.clone(),
        accounts: accounts.clone(),
        sealer,
        discovery,
        persistence: persistence.clone(),
        ready: is_ready,
        snapshot: snapshot.clone(),
        progress: stored.as_ref().map(Stored::progress),
        writing,
        restart: restart.clone(),
        changes: changes.clone(),
    };
    // What its descriptions take while they are made is given back when the thread ends.
    let platform = tokio::task::spawn_blocking(|| platform::router(platform)).await?;
    let maintained = identity.clone();
    tokio::spawn(async move { maintained.maintain().await });
    let gzip = Gzip::new(&settings.features);
    let gateway = Arc::new(Gateway {
        security,
        identity,
        accounts,
        routings,
        platform,
        settings,
        snapshot,
        metrics,
        traffic: Arc::clone(&traffic),
        draining: AtomicBool::new(false),
        gzip,
    });
    let (reports, seen_reports) = watch::channel::<Arc<RevisionReport>>(Arc::default());
    let (reporter, reporting) = (gateway.clone(), reports.clone());
    tokio::spawn(async move {
        while health.changed().await.is_ok() {
            reporting.send_modify(|report| Arc::make_mut(report).stores = stores(&reporter));
        }
    });
    let mut publisher =
        Publisher { gateway: gateway.clone(), reports, served, compiler: Some(compiler), definitions, stored };
    publisher.publish().await?;
    tokio::spawn(publisher.follow());

    let acceptor = certificate.as_ref().map(Certificate::acceptor).transpose()?;
    if let Some(certificate) = certificate {
        tokio::spawn(certificate.follow());
    }
    let listener = listen::bind(port).with_context(|| format!("PORT {port} can't be used"))?;
    start_admin(admin_port, gateway.clone(), seen_reports)?;
    let (phase, phases) = watch::channel(Phase::Serving);
    let mut serving = tokio::spawn(listen::serve(listener, acceptor, gateway.clone(), phases));
    tracing::info!("Application startup complete");
    tracing::info!(port, admin_port, apis = gateway.snapshot.load().served, "serving");

    let starts_again = tokio::select! {
        outcome = wait_for_signal() => outcome.map(|()| false)?,
        () = restart.notified() => true,
    };
    tracing::info!("stopping: readiness is off, connections are asked to close");
    ready.send_replace(false);
    gateway.draining.store(true, Ordering::Relaxed);
    tokio::select! {
        () = tokio::time::sleep(drain) => {}
        outcome = wait_for_signal() => outcome?,
    }
    phase.send_replace(Phase::Closing);
    if tokio::time::timeout(shutdown, &mut serving).await.is_err() {
        tracing::warn!("some calls did not finish in {shutdown:?}; they are cut");
    }
    changes.close();
    if tokio::time::timeout(CHANGES, changes.wait()).await.is_err() {
        tracing::error!(left = changes.len(), "changes that were begun are cut off");
    }
    gateway.accounts.finish().await;
    persistence.dump_at_end().await;
    if let Err(error) = traffic.finish().await {
        tracing::warn!(%error, "counts of the last traffic are not kept");
    }
    tracing::info!("stopped");
    // A program that begins anew takes nothing of this one with it.
    logs.flush();
    if starts_again { Err(start_again()) } else { Ok(()) }
}

/// Begins this program anew in the same process, so that whoever looks after the process notices nothing. Returns when
/// that fails.
fn start_again() -> anyhow::Error {
    let begin_anew = || {
        let mut program = std::process::Command::new(std::env::current_exe()?);
        Err::<(), _>(program.args(std::env::args_os().skip(1)).exec())
    };
    match begin_anew() {
        Err(error) => anyhow::Error::from(error).context("the restart failed"),
        Ok(()) => anyhow::anyhow!("the restart failed"),
    }
}

async fn follow(source: Source, settings: &Settings) -> anyhow::Result<watch::Receiver<Arc<Definitions>>> {
    match source {
        Source::Directory(folder) => {
            let mut directory = Directory::new(folder);
            let (publish, definitions) = watch::channel(Arc::new(directory.read()?.unwrap_or_default()));
            tokio::spawn(directory.follow(publish));
            Ok(definitions)
        }
        Source::Documents => {
            let (publish, definitions) = watch::channel(Arc::default());
            tokio::spawn(async move { publish.closed().await });
            Ok(definitions)
        }
        Source::Kubernetes(selection) => {
            let own = &settings.definitions;
            Ok(kubernetes::start(selection, own.snapshot_folder.as_deref(), own.kubernetes_wait).await?)
        }
    }
}

/// Where the platform API writes definitions; each snapshot that is served is told to whom it waits for.
async fn writing(source: &Source, settings: &Settings, served: watch::Receiver<()>) -> anyhow::Result<Writing> {
    Ok(match (source, settings.definitions.platform) {
        (Source::Directory(_) | Source::Documents, _) => Writing::Documents,
        (Source::Kubernetes(_), PlatformDefinitions::ReadOnly) => Writing::ReadOnly,
        (Source::Kubernetes(selection), PlatformDefinitions::ReadWrite) => {
            let client = kube::Client::try_default().await?;
            Writing::Cluster(Writer::new(client, selection.clone(), served))
        }
    })
}

/// Compiles what is defined and puts it into service, one state after the other.
struct Publisher {
    gateway: Arc<Gateway>,
    reports: watch::Sender<Arc<RevisionReport>>,
    /// Told of each snapshot that is served.
    served: watch::Sender<()>,
    /// Away while it works, on a thread of its own.
    compiler: Option<Compiler>,
    definitions: watch::Receiver<Arc<Definitions>>,
    stored: Option<Stored>,
}

impl Publisher {
    /// The newest state, now.
    async fn publish(&mut self) -> anyhow::Result<()> {
        let mut state = self.definitions.borrow_and_update().clone();
        let mut number = 0;
        if let Some(stored) = &mut self.stored {
            number = stored.read_at_last().await;
            state = Arc::new(stored.merged(&state));
        }
        let mut compiler = self.compiler.take().context("the compiler is gone")?;
        if let Some(stored) = &self.stored {
            compiler.set_stored_roles(stored.roles().clone());
        }
        let compile = move || {
            let snapshot = compiler.compile(&state);
            (compiler, snapshot)
        };
        let (compiler, snapshot) = tokio::task::spawn_blocking(compile).await?;
        self.compiler = Some(compiler);
        serve(&self.gateway, &self.reports, snapshot);
        self.served.send_replace(());
        if let Some(stored) = &self.stored {
            stored.served(number);
        }
        Ok(())
    }

    async fn follow(mut self) {
        loop {
            let stored = async {
                match &self.stored {
                    Some(stored) => stored.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.definitions.changed() => if changed.is_err() { return },
                () = stored => {}
            }
            if let Err(error) = self.publish().await {
                tracing::error!(%error, "definitions can't be compiled; the last snapshot stays");
                return;
            }
        }
    }
}

fn serve(gateway: &Gateway, reports: &watch::Sender<Arc<RevisionReport>>, snapshot: Snapshot) {
    let before = gateway.snapshot.load();
    let known: HashSet<&Rejection> = before.rejected.iter().collect();
    for rejection in snapshot.rejected.iter().filter(|rejection| !known.contains(rejection)) {
        let Rejection { kind, namespace, name, reason, message } = rejection;
        tracing::error!(kind, namespace, name, reason, "rejected, the rest is served: {message}");
    }
    let known: HashSet<&Rejection> = before.unusable.iter().collect();
    for Rejection { namespace, name, message, .. } in snapshot.unusable.iter().filter(|one| !known.contains(one)) {
        let is_served = !snapshot.rejected.iter().any(|one| one.name == *name && one.namespace == *namespace);
        if is_served {
            tracing::error!(namespace, name, "a Secret can't be used, the last one that could is used on: {message}");
        }
    }
    tracing::info!(apis = snapshot.served, rejected = snapshot.rejected.len(), "a new snapshot is served");
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    gateway.metrics.apis_served.set(count(snapshot.served));
    gateway.metrics.objects_rejected.set(count(snapshot.rejected.len()));
    gateway.metrics.secrets_unusable.set(count(snapshot.unusable.len()));
    gateway.metrics.snapshots.inc();
    let mut report = snapshot.report();
    gateway.identity.define_roles(snapshot.roles.clone());
    gateway.snapshot.store(Arc::new(snapshot));
    reports.send_modify(|seen| {
        // Looked up while nobody else writes, so that a change in this moment is not taken back.
        report.stores = stores(gateway);
        *seen = Arc::new(std::mem::take(&mut report));
    });
}

/// What the operator is told of the stores; nothing when all is in this process.
fn stores(gateway: &Gateway) -> Option<Stores> {
    let store = gateway.identity.store();
    let health = store.health();
    (store.mode() != "memory").then_some(Stores { mongodb: health.mongodb, redis: health.redis })
}

/// A thread and a runtime of its own for the admin port.
fn start_admin(port: u16, gateway: Arc<Gateway>, reports: watch::Receiver<Arc<RevisionReport>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _entered = runtime.enter();
        listen::bind(port).with_context(|| format!("DOORMAN_ADMIN_PORT {port} can't be used"))?
    };
    std::thread::Builder::new().name("admin".into()).spawn(move || {
        if let Err(error) = runtime.block_on(admin::serve(listener, gateway, reports)) {
            tracing::error!(%error, "the admin port is gone");
        }
    })?;
    Ok(())
}

async fn wait_for_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
