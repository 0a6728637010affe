//! From settings to a running gateway and back to an orderly end.
//!
//! Order of a start: definitions are read and compiled, then sockets open; so nobody is told 404 by a gateway that has
//! not looked yet. Order of an end: readiness off, `DOORMAN_DRAIN_SECONDS` of further service with `Connection: close`,
//! listening ends, calls in flight get `DOORMAN_SHUTDOWN_SECONDS`.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use doorman_crds::revision::{Rejection, RevisionReport};
use doorman_crds::selection::Selection;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::admin;
use crate::definitions::Definitions;
use crate::definitions::directory::Directory;
use crate::definitions::kubernetes;
use crate::definitions::writer::{Writer, Writing};
use crate::identity::Identity;
use crate::listen::tls::Certificate;
use crate::listen::{self, Phase};
use crate::pipeline::Gateway;
use crate::platform::{self, Platform};
use crate::settings::{PlatformDefinitions, Settings};
use crate::snapshot::{Compiler, Snapshot};
use crate::store::{Change, Collection, Store};
use crate::telemetry::metrics::Metrics;
use crate::upstream::{PoolOptions, Pools};

/// When the names of stored roles are asked for again that could not be had.
const ROLES_RETRY: Duration = Duration::from_secs(5);

/// Where definitions come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of manifests.
    Directory(PathBuf),
    /// The objects of the cluster this gateway takes.
    Kubernetes(Selection),
}

/// Runs the gateway until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// What kept it from starting.
pub async fn run(settings: Settings, source: Source) -> anyhow::Result<()> {
    // In a cluster, loopback is the pod itself: calling it would go round every rule.
    let allow_loopback = matches!(source, Source::Directory(_));
    let (served, is_served) = watch::channel(());
    let writing = writing(&source, &settings, is_served).await?;
    let mut definitions = follow(source, &settings).await?;

    let pools = Pools::new(PoolOptions {
        max_connections: settings.upstream.max_connections.get() as usize,
        max_idle: settings.upstream.max_idle as usize,
        idle_life: settings.upstream.idle_life,
        http2: settings.upstream.http2,
        allow_loopback,
    });
    let mut compiler = Compiler::new(pools);
    let (port, admin_port) = (settings.server.port, settings.server.admin_port);
    let (drain, shutdown) = (settings.server.drain, settings.server.shutdown);
    let certificate =
        settings.server.tls_files().map(|files| Certificate::load(files.certificate, files.key)).transpose()?;
    let store = Arc::new(Store::open(&settings).await?);
    let stored = StoredRoles::follow(&store, &writing);
    let identity = Arc::new(Identity::new(&settings, store)?);
    let settings = Arc::new(settings);
    let (ready, is_ready) = watch::channel(true);
    let platform = platform::router(Platform::new(settings.clone(), identity.clone(), is_ready, writing));
    let maintained = identity.clone();
    tokio::spawn(async move { maintained.maintain().await });
    let gateway = Arc::new(Gateway {
        identity,
        platform,
        settings,
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        metrics: Metrics::default(),
        draining: AtomicBool::new(false),
    });
    let (reports, seen_reports) = watch::channel(Arc::default());
    let outlets = Outlets { gateway: gateway.clone(), reports, served };
    let first = definitions.borrow_and_update().clone();
    compiler.set_stored_roles(stored.names(BTreeSet::new()).await);
    outlets.publish(compiler.compile(&first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                change = definitions.changed() => if change.is_err() { return },
                () = stored.changed() => {}
            }
            let names = stored.names(compiler.take_stored_roles()).await;
            compiler.set_stored_roles(names);
            let state: Arc<Definitions> = definitions.borrow_and_update().clone();
            let (returned, snapshot) = match tokio::task::spawn_blocking(move || {
                let snapshot = compiler.compile(&state);
                (compiler, snapshot)
            })
            .await
            {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!(%error, "definitions can't be compiled; the last snapshot stays");
                    return;
                }
            };
            compiler = returned;
            outlets.publish(snapshot);
        }
    });

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

    wait_for_signal().await?;
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
    tracing::info!("stopped");
    Ok(())
}

async fn follow(source: Source, settings: &Settings) -> anyhow::Result<watch::Receiver<Arc<Definitions>>> {
    match source {
        Source::Directory(folder) => {
            let mut directory = Directory::new(folder);
            let (publish, definitions) = watch::channel(Arc::new(directory.read()?.unwrap_or_default()));
            tokio::spawn(directory.follow(publish));
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
        (Source::Directory(_), _) => Writing::Documents,
        (Source::Kubernetes(_), PlatformDefinitions::ReadOnly) => Writing::ReadOnly,
        (Source::Kubernetes(selection), PlatformDefinitions::ReadWrite) => {
            let client = kube::Client::try_default().await?;
            Writing::Cluster(Writer::new(client, selection.clone(), served))
        }
    })
}

/// Names of the roles of the store, for APIs to refer to.
enum StoredRoles {
    /// They count: there is no cluster.
    Counted(Arc<Store>, Arc<Notify>),
    /// They don't: the operator, which says whether an API's roles exist, does not see them.
    Ignored,
}

impl StoredRoles {
    fn follow(store: &Arc<Store>, writing: &Writing) -> Self {
        if !matches!(writing, Writing::Documents) {
            return Self::Ignored;
        }
        let notify = Arc::new(Notify::new());
        let notified = notify.clone();
        store.on_change(move |change| {
            if matches!(change, Change::Document(Collection::Roles, _) | Change::Everything) {
                notified.notify_one();
            }
        });
        Self::Counted(store.clone(), notify)
    }

    async fn changed(&self) {
        match self {
            Self::Counted(_, notify) => notify.notified().await,
            Self::Ignored => std::future::pending().await,
        }
    }

    /// The names now; while the store is away, those of before.
    async fn names(&self, before: BTreeSet<String>) -> BTreeSet<String> {
        let Self::Counted(store, notify) = self else { return before };
        match store.all(Collection::Roles).await {
            Ok(roles) => roles.iter().filter_map(|role| role.get_str("role_name").ok().map(str::to_owned)).collect(),
            Err(error) => {
                tracing::warn!(%error, "stored roles can't be read; APIs may name those known so far");
                let notify = notify.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(ROLES_RETRY).await;
                    notify.notify_one();
                });
                before
            }
        }
    }
}

/// Where a new snapshot goes.
struct Outlets {
    gateway: Arc<Gateway>,
    reports: watch::Sender<Arc<RevisionReport>>,
    served: watch::Sender<()>,
}

impl Outlets {
    fn publish(&self, snapshot: Snapshot) {
        let gateway = &self.gateway;
        let before = gateway.snapshot.load();
        let known: HashSet<&Rejection> = before.rejected.iter().collect();
        for rejection in snapshot.rejected.iter().filter(|rejection| !known.contains(rejection)) {
            let Rejection { kind, namespace, name, reason, message } = rejection;
            tracing::error!(kind, namespace, name, reason, "rejected, the rest is served: {message}");
        }
        tracing::info!(apis = snapshot.served, rejected = snapshot.rejected.len(), "a new snapshot is served");
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        gateway.metrics.apis_served.set(count(snapshot.served));
        gateway.metrics.objects_rejected.set(count(snapshot.rejected.len()));
        gateway.metrics.snapshots.inc();
        let report = Arc::new(snapshot.report());
        gateway.identity.define_roles(snapshot.roles.clone());
        gateway.snapshot.store(Arc::new(snapshot));
        self.reports.send_replace(report);
        self.served.send_replace(());
    }
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
