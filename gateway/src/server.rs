//! From settings to a running gateway and back to an orderly end.
//!
//! Order of a start: definitions are read and compiled, then sockets open; so nobody is told 404 by a gateway that has
//! not looked yet. Order of an end: readiness off, `DOORMAN_DRAIN_SECONDS` of further service with `Connection: close`,
//! listening ends, calls in flight get `DOORMAN_SHUTDOWN_SECONDS`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use arc_swap::ArcSwap;
use doorman_crds::revision::{Rejection, RevisionReport};
use doorman_crds::selection::Selection;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admin;
use crate::definitions::Definitions;
use crate::definitions::directory::Directory;
use crate::definitions::kubernetes;
use crate::identity::Identity;
use crate::listen::tls::Certificate;
use crate::listen::{self, Phase};
use crate::pipeline::Gateway;
use crate::platform::{self, Platform};
use crate::reload;
use crate::settings::Settings;
use crate::snapshot::{Compiler, Snapshot};
use crate::store::Store;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{PoolOptions, Pools};

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
    let identity = Arc::new(Identity::new(&settings, store)?);
    let settings = Arc::new(settings);
    let (ready, is_ready) = watch::channel(true);
    let platform = platform::router(Platform::new(settings.clone(), identity.clone(), is_ready));
    tokio::spawn(reload::follow(settings.clone(), identity.store())?);
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
    let first = definitions.borrow_and_update().clone();
    publish(&gateway, &reports, compiler.compile(&first));
    let publisher = gateway.clone();
    tokio::spawn(async move {
        while definitions.changed().await.is_ok() {
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
            publish(&publisher, &reports, snapshot);
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

fn publish(gateway: &Gateway, reports: &watch::Sender<Arc<RevisionReport>>, snapshot: Snapshot) {
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
    gateway.snapshot.store(Arc::new(snapshot));
    reports.send_replace(report);
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
