//! The running operator: events in, plans out, one loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::apply::Writer;
use crate::fleet::Fleet;
use crate::lease::Leadership;
use crate::metrics::{self, Metrics};
use crate::render::Installation;
use crate::watch;
use crate::world::{Action, Event, World};

/// Name of the Lease in the operator's namespace.
const LEASE: &str = "doorman-operator";
/// Reports waiting to be taken in.
const REPORTS: usize = 1024;

/// Pause before another try to remove an orphan.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

/// How the operator runs.
#[derive(Debug)]
pub struct Options {
    /// What it was installed with.
    pub installation: Installation,
    /// Who it is among the operator's pods.
    pub identity: String,
    /// Port of probes and metrics; 0 lets the system choose.
    pub port: u16,
}

/// Runs until SIGTERM or SIGINT. What it knows and does ends with the lead, and begins anew with the next.
///
/// # Errors
/// What kept it from running.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::infer().await.context("no Kubernetes API server is configured")?;
    let client = Client::try_from(config).context("the Kubernetes client can't be set up")?;
    let (metrics, is_ready) = (Metrics::default(), Arc::new(AtomicBool::new(false)));
    let listener = TcpListener::bind(("0.0.0.0", options.port)).await.context("the port of probes can't be had")?;
    tracing::info!(address = %listener.local_addr()?, "serving probes and metrics");
    tokio::spawn(metrics::serve(listener, metrics.clone(), is_ready.clone()));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut leadership = Leadership::new(client.clone(), &options.installation.namespace, LEASE, &options.identity);
    // Waiting for the lead is a healthy state: a roll-out of the operator must not wait for it.
    loop {
        is_ready.store(true, Ordering::Relaxed);
        tokio::select! {
            () = leadership.acquire() => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        is_ready.store(false, Ordering::Relaxed);
        metrics.leads.set(1);
        tracing::info!(identity = options.identity, "leading");
        let end = tokio::select! {
            result = lead(client.clone(), options.installation.clone(), metrics.clone(), is_ready.clone()) => Some(result),
            () = leadership.keep() => None,
            _ = terminate.recv() => Some(Ok(())),
            _ = interrupt.recv() => Some(Ok(())),
        };
        metrics.leads.set(0);
        if let Some(result) = end {
            leadership.release().await;
            return result;
        }
        tracing::warn!("another operator leads now, or the Lease could not be renewed in time; waiting for the lead");
    }
}

async fn lead(
    client: Client,
    installation: Installation,
    metrics: Metrics,
    is_ready: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let mut events = watch::all(&client);
    let (sender, mut reports) = mpsc::channel(REPORTS);
    let mut fleet = Fleet::new(sender);
    let writer = Writer::new(client, metrics.clone());
    let mut world = World::new(installation);
    let mut writes: JoinSet<Option<Event>> = JoinSet::new();
    loop {
        let deadline = world.deadline().map(tokio::time::Instant::from_std);
        let batch = tokio::select! {
            batch = events.next() => batch.context("the watches have ended")?,
            Some(report) = reports.recv() => vec![report],
            Some(done) = writes.join_next() => Vec::from_iter(done.context("a write has crashed")?),
            () = async { if let Some(deadline) = deadline { sleep_until(deadline).await } }, if deadline.is_some() => Vec::new(),
        };
        let now = Instant::now();
        let (mut pods_changed, mut is_complete) = (false, false);
        for event in batch {
            pods_changed |= matches!(event, Event::Pod(_));
            is_complete |= matches!(event, Event::Complete);
            metrics.events.inc();
            world.apply(event, now);
        }
        if is_complete {
            tracing::info!("everything is listed");
            is_ready.store(true, Ordering::Relaxed);
        }
        if pods_changed {
            let pods = world.listen_to();
            metrics.pods.set(i64::try_from(pods.len()).unwrap_or(i64::MAX));
            fleet.listen_to(pods);
        }
        for action in world.plan(now, &Time(Timestamp::now())) {
            let writer = writer.clone();
            match action {
                Action::Write(target, uid, status) => {
                    writes.spawn(async move { Some(writer.write(target, uid, status).await) });
                }
                Action::Reconcile(job) => {
                    writes.spawn(async move { Some(writer.reconcile(*job).await) });
                }
                Action::Remove(key, owned) => {
                    writes.spawn(async move {
                        let error = writer.remove(&key).await.err()?;
                        tracing::warn!(kind = ?key.kind, name = key.id.name, %error, "an orphan can't be removed; trying again");
                        sleep(REMOVE_AGAIN).await;
                        Some(Event::Owned(key, Some(owned)))
                    });
                }
            }
        }
    }
}
