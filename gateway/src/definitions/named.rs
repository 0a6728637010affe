//! Secrets of the cluster that APIs name: a watch on each by its name, and on no others.
//!
//! A gateway may read single Secrets only, which the operator grants by name, so there is nothing to list them from. In:
//! which Secrets are named. Out: what is known of each. What was known of a Secret stays when the API server is away.
//! A refusal to read is believed when it lasts: the operator grants a right a moment after it has seen API and Secret, and
//! an API server that has just started may refuse what it allows.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use doorman_crds::api::{Consent, NoSecret};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret as Object;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::watcher::{self, Event, ExponentialBackoff, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::ObjectId;
use super::secret::{Secret, Secrets};

/// How long the API server must refuse before that is taken for its answer.
const DENIED: Duration = Duration::from_secs(5);
/// Pauses between two tries to watch: short at first, since a grant is mostly on its way.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Words waiting to be taken in.
const WORDS: usize = 256;

/// What the API server said of a Secret.
enum Said {
    Is(Option<Box<Object>>),
    Denied,
}

type Known = Result<Arc<Secret>, NoSecret>;

/// One watched Secret.
struct Watched {
    /// Tells words of this watch from those of an earlier one.
    number: u64,
    is_heard: bool,
    /// What it was when it could last be read.
    last: Option<Known>,
    denied: Option<Instant>,
    /// What holds now; `None`: there is good reason to wait.
    now: Option<Known>,
    _watch: AbortOnDropHandle<()>,
}

impl Watched {
    fn judged(&self, now: Instant) -> Option<Known> {
        match self.denied {
            Some(since) if now >= since + DENIED => Some(Err(NoSecret::Forbidden(None))),
            _ => self.last.clone(),
        }
    }
}

/// All watched Secrets, on behalf of one gateway.
pub(super) struct Named {
    client: Client,
    namespace: String,
    gateway: String,
    watched: BTreeMap<ObjectId, Watched>,
    next: u64,
    tell: mpsc::Sender<(ObjectId, u64, Said)>,
    words: mpsc::Receiver<(ObjectId, u64, Said)>,
}

impl Named {
    /// Watches none yet.
    pub(super) fn new(client: Client, namespace: &str, gateway: &str) -> Self {
        let (tell, words) = mpsc::channel(WORDS);
        let (namespace, gateway) = (namespace.to_owned(), gateway.to_owned());
        Self { client, namespace, gateway, watched: BTreeMap::new(), next: 0, tell, words }
    }

    /// Watches these and no others.
    pub(super) fn watch(&mut self, named: &BTreeSet<ObjectId>) {
        self.watched.retain(|id, _| named.contains(id));
        for id in named {
            if self.watched.contains_key(id) {
                continue;
            }
            self.next += 1;
            let api = Api::namespaced(self.client.clone(), &id.0);
            let watch = AbortOnDropHandle::new(tokio::spawn(follow(api, id.clone(), self.next, self.tell.clone())));
            let new =
                Watched { number: self.next, is_heard: false, last: None, denied: None, now: None, _watch: watch };
            self.watched.insert(id.clone(), new);
        }
    }

    /// Waits for news; whether they changed what is known.
    pub(super) async fn changed(&mut self) -> bool {
        // The sending side lives as long as this.
        let Some(first) = self.words.recv().await else { return std::future::pending().await };
        let mut changed = self.hear(first);
        while let Ok(next) = self.words.try_recv() {
            changed |= self.hear(next);
        }
        changed
    }

    fn hear(&mut self, (id, number, said): (ObjectId, u64, Said)) -> bool {
        let Some(watched) = self.watched.get_mut(&id).filter(|watched| watched.number == number) else { return false };
        let was_heard = std::mem::replace(&mut watched.is_heard, true);
        let now = Instant::now();
        match said {
            Said::Is(object) => {
                let known = match object {
                    None => Err(NoSecret::NotFound),
                    Some(object) => {
                        let consent = Consent::of(&object.metadata).covers(&id.0, &self.namespace, &self.gateway);
                        consent.map(|()| Arc::new(Secret::from(*object)))
                    }
                };
                (watched.last, watched.denied) = (Some(known), None);
            }
            Said::Denied if watched.denied.is_none() => {
                tracing::warn!(namespace = id.0, secret = id.1, "the API server does not let this gateway read it");
                watched.denied = Some(now);
            }
            Said::Denied => {}
        }
        let judged = watched.judged(now);
        let is_new = judged != watched.now;
        watched.now = judged;
        is_new || !was_heard
    }

    /// Is there a word on each, even if only a refusal?
    pub(super) fn all_heard(&self) -> bool {
        self.watched.values().all(|watched| watched.is_heard)
    }

    /// Should an API that newly names this Secret wait for it?
    pub(super) fn is_awaited(&self, id: &ObjectId) -> bool {
        self.watched.get(id).is_none_or(|watched| watched.now.is_none())
    }

    /// What is known now.
    pub(super) fn known(&self) -> Secrets {
        let known = self.watched.iter().filter_map(|(id, watched)| {
            let refused = watched.denied.map(|_| Err(NoSecret::Forbidden(None)));
            Some((id.clone(), watched.now.clone().or(refused)?))
        });
        Secrets::known(known.collect())
    }
}

fn is_denied(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            matches!(error, kube::Error::Api(status) if status.code == 403)
        }
        WatchError(status) => status.code == 403,
        watcher::Error::NoResourceVersion => false,
    }
}

/// Tells what becomes of one Secret, for ever.
async fn follow(api: Api<Object>, id: ObjectId, number: u64, tell: mpsc::Sender<(ObjectId, u64, Said)>) {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter();
    let pauses = ResetTimerBackoff::new(ExponentialBackoff::from(pauses), DENIED * 2);
    // A list or watch of one name is what a right to that name allows.
    let config = watcher::Config::default().fields(&format!("metadata.name={}", id.1));
    let mut events = pin!(watcher(api, config).backoff(pauses));
    let mut listed = None;
    while let Some(event) = events.next().await {
        let said = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(Box::new(object));
                continue;
            }
            Ok(Event::InitDone) => Said::Is(listed.take()),
            Ok(Event::Apply(object)) => Said::Is(Some(Box::new(object))),
            Ok(Event::Delete(_)) => Said::Is(None),
            Err(error) if is_denied(&error) => Said::Denied,
            Err(error) => {
                tracing::warn!(namespace = id.0, secret = id.1, %error, "the watch is interrupted; what is known is used on");
                continue;
            }
        };
        if tell.send((id.clone(), number, said)).await.is_err() {
            return;
        }
    }
}
