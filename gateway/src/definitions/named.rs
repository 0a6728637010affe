//! Secrets of the cluster that APIs name: a watch on each by its name, and on no others.
//!
//! A gateway may read single Secrets only, which the operator grants by name, so there is nothing to list them from. In:
//! which Secrets are named. Out: what is known of each. What was known of a Secret stays when the API server is away.
//! A refusal to read is believed when it lasts: the operator grants a right a moment after it has seen API and Secret, and
//! an API server that has just started may refuse what it allows. Tries then grow rare, but for one whenever an API that
//! names the Secret changes: the operator says in its status that it has seen the consent.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use doorman_crds::api::{Consent, NoSecret};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret as Object;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::ObjectId;
use super::secret::{Secret, Secrets};

/// How long the API server must refuse before that is taken for its answer.
const REFUSAL: Duration = Duration::from_secs(5);
/// Pauses between two tries to watch: short at first, since a grant is mostly on its way.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest where it refuses: thousands of names cost it little then, and what grants one is told by [`Named::ask_again`].
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Longest where the API server was not reached, which it mostly is again soon.
const LONGEST_OUTAGE_PAUSE: Duration = Duration::from_secs(5);
/// Time without an error, after the last pause, after which pauses begin anew.
const QUIET: Duration = Duration::from_secs(60);
/// Words waiting to be taken in.
const WORDS: usize = 256;
/// Tries of one namespace at a time, however many Secrets its APIs name: others' come in between.
const TRIES: usize = 8;

/// What the API server said of a Secret.
enum Said {
    Is(Option<Box<Object>>),
    Refused,
}

/// One watched Secret.
struct Watched {
    /// The number tells words of this watch from those of an earlier one.
    watch: (u64, AbortOnDropHandle<()>),
    /// What it was when it could last be read.
    last: Option<Result<Arc<Secret>, NoSecret>>,
    /// Since when the API server refuses to show it.
    refused: Option<Instant>,
    /// Whether it has refused for long enough.
    is_refusal_final: bool,
}

impl Watched {
    /// When its refusal becomes final.
    fn due(&self) -> Option<Instant> {
        self.refused.filter(|_| !self.is_refusal_final).map(|since| since + REFUSAL)
    }
}

/// All watched Secrets, on behalf of one gateway.
pub(super) struct Named {
    client: Client,
    namespace: String,
    gateway: String,
    watched: BTreeMap<ObjectId, Watched>,
    /// By namespace.
    turns: BTreeMap<String, Arc<Semaphore>>,
    next: u64,
    tell: mpsc::Sender<(ObjectId, u64, Said)>,
    words: mpsc::Receiver<(ObjectId, u64, Said)>,
}

impl Named {
    /// Watches none yet.
    pub(super) fn new(client: Client, namespace: &str, gateway: &str) -> Self {
        let (tell, words) = mpsc::channel(WORDS);
        let (namespace, gateway) = (namespace.to_owned(), gateway.to_owned());
        Self { client, namespace, gateway, watched: BTreeMap::new(), turns: BTreeMap::new(), next: 0, tell, words }
    }

    /// Watches these and no others.
    pub(super) fn watch(&mut self, named: &BTreeSet<ObjectId>) {
        self.watched.retain(|id, _| named.contains(id));
        let namespaces: BTreeSet<_> = named.iter().map(|(namespace, _)| namespace).collect();
        self.turns.retain(|namespace, _| namespaces.contains(namespace));
        for id in named {
            if !self.watched.contains_key(id) {
                let watch = self.start(id);
                let new = Watched { watch, last: None, refused: None, is_refusal_final: false };
                self.watched.insert(id.clone(), new);
            }
        }
    }

    fn start(&mut self, id: &ObjectId) -> (u64, AbortOnDropHandle<()>) {
        self.next += 1;
        let api = Api::namespaced(self.client.clone(), &id.0);
        let turns = self.turns.entry(id.0.clone()).or_insert_with(|| Arc::new(Semaphore::new(TRIES))).clone();
        let watch = tokio::spawn(follow(api, id.clone(), turns, self.next, self.tell.clone()));
        (self.next, AbortOnDropHandle::new(watch))
    }

    /// Asks for this Secret at once if it was refused: what has happened may be its grant.
    pub(super) fn ask_again(&mut self, id: &ObjectId) {
        if self.watched.get(id).is_some_and(|watched| watched.refused.is_some()) {
            let watch = self.start(id);
            if let Some(watched) = self.watched.get_mut(id) {
                watched.watch = watch;
            }
        }
    }

    /// Waits for news; whether they changed what is known.
    pub(super) async fn changed(&mut self) -> bool {
        let due = self.watched.values().filter_map(Watched::due).min();
        tokio::select! {
            // The sending side lives as long as this.
            Some(first) = self.words.recv() => {
                let mut changed = self.hear(first);
                while let Ok(next) = self.words.try_recv() {
                    changed |= self.hear(next);
                }
                changed
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let now = Instant::now();
                for watched in self.watched.values_mut().filter(|watched| watched.due().is_some_and(|due| due <= now)) {
                    watched.is_refusal_final = true;
                }
                true
            }
        }
    }

    fn hear(&mut self, (id, number, said): (ObjectId, u64, Said)) -> bool {
        let Some(watched) = self.watched.get_mut(&id).filter(|watched| watched.watch.0 == number) else { return false };
        match said {
            Said::Is(object) => {
                let known = object.map_or(Err(NoSecret::NotFound), |object| {
                    Consent::of(&object.metadata).covers(&id.0, &self.namespace, &self.gateway)?;
                    Ok(Arc::new(Secret::from(*object)))
                });
                let was_refused = watched.refused.take().is_some();
                watched.is_refusal_final = false;
                let before = watched.last.replace(known);
                was_refused || before != watched.last
            }
            Said::Refused if watched.refused.is_none() => {
                tracing::warn!(namespace = id.0, secret = id.1, "the API server does not let this gateway read it");
                watched.refused = Some(Instant::now());
                watched.last.is_none()
            }
            Said::Refused => false,
        }
    }

    /// On how many there is no word yet, not even a refusal.
    pub(super) fn unheard(&self) -> usize {
        self.watched.values().filter(|watched| watched.last.is_none() && watched.refused.is_none()).count()
    }

    /// Should an API that newly names this Secret wait for it?
    pub(super) fn is_awaited(&self, id: &ObjectId) -> bool {
        self.watched.get(id).is_none_or(|watched| watched.last.is_none() && !watched.is_refusal_final)
    }

    /// What is known now.
    pub(super) fn known(&self) -> Secrets {
        let refused = |watched: &Watched| watched.refused.map(|_| Err(NoSecret::Forbidden(None)));
        let known = self.watched.iter().filter_map(|(id, watched)| {
            let last = watched.last.clone().filter(|_| !watched.is_refusal_final);
            Some((id.clone(), last.or_else(|| refused(watched))?))
        });
        Secrets::known(known.collect())
    }
}

fn is_refusal(error: &watcher::Error) -> bool {
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
async fn follow(
    api: Api<Object>,
    id: ObjectId,
    turns: Arc<Semaphore>,
    number: u64,
    tell: mpsc::Sender<(ObjectId, u64, Said)>,
) {
    // Not the watcher's own way to pause: that one begins anew with each try, which `Init` is.
    let growing = |longest| {
        let growing = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(longest);
        growing.without_max_times().with_jitter().build()
    };
    let mut pauses = growing(LONGEST_PAUSE);
    // When it was tried last, and whether it was refused then.
    let mut tried = None::<(Instant, bool)>;
    // A list or watch of one name is what a right to that name allows.
    let config = watcher::Config::default().fields(&format!("metadata.name={}", id.1));
    let mut events = pin!(watcher(api.clone(), config.clone()));
    let mut listed = None;
    // Until there is a word. An error: nobody closes it.
    let mut turn = turns.acquire().await.ok();
    while let Some(event) = events.next().await {
        let (said, pause) = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(Box::new(object));
                continue;
            }
            Ok(Event::InitDone) => (Some(Said::Is(listed.take())), None),
            Ok(Event::Apply(object)) => (Some(Said::Is(Some(Box::new(object)))), None),
            Ok(Event::Delete(_)) => (Some(Said::Is(None)), None),
            Err(error) => {
                let is_refusal = is_refusal(&error);
                let longest = if is_refusal { LONGEST_PAUSE } else { LONGEST_OUTAGE_PAUSE };
                // An API server that is back may refuse for a moment.
                if tried.is_none_or(|(tried, before)| before != is_refusal || tried.elapsed() > QUIET) {
                    pauses = growing(longest);
                }
                let pause = pauses.next().unwrap_or(longest);
                tried = Some((Instant::now() + pause, is_refusal));
                if is_refusal {
                    (Some(Said::Refused), Some(pause))
                } else {
                    tracing::warn!(namespace = id.0, secret = id.1, %error, "the watch is interrupted; what is known is used on");
                    (None, Some(pause))
                }
            }
        };
        drop(turn.take());
        let is_refused = matches!(said, Some(Said::Refused));
        if let Some(said) = said
            && tell.send((id.clone(), number, said)).await.is_err()
        {
            return;
        }
        if let Some(pause) = pause {
            sleep(pause).await;
        }
        if is_refused {
            // A watch that was refused goes on where it was and says nothing when it is let in again, unless it lists anew.
            events.set(watcher(api.clone(), config.clone()));
            turn = turns.acquire().await.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;

    /// An API server with one Secret, or none that it shows, and how often it was asked.
    #[derive(Default)]
    struct Server {
        secret: Mutex<Option<Value>>,
        asked: Mutex<u32>,
        /// So many watches are refused, though it can be listed.
        refused_watches: Mutex<u32>,
    }

    impl Server {
        fn client(self: &Arc<Self>) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let query = request.uri().query().unwrap_or_default();
                    assert!(query.contains("metadata.name%3Dca"), "{query}");
                    let mut secret = server.secret.lock().unwrap().clone();
                    if query.contains("watch=") {
                        let is_refused = {
                            let mut left = server.refused_watches.lock().unwrap();
                            let refused = *left;
                            *left = refused.saturating_sub(1);
                            refused > 0
                        };
                        if !is_refused {
                            std::future::pending::<()>().await;
                        }
                        secret = None;
                    }
                    *server.asked.lock().unwrap() += 1;
                    let (status, body) = secret.map_or_else(
                        || (403, json!({ "kind": "Status", "status": "Failure", "code": 403, "message": "no" })),
                        |secret| (200, json!({ "metadata": { "resourceVersion": "1" }, "items": [secret] })),
                    );
                    let body = Body::from(body.to_string().into_bytes());
                    Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
                }
            });
            Client::new(service, "shop")
        }

        fn asked(&self) -> u32 {
            *self.asked.lock().unwrap()
        }
    }

    fn ca() -> ObjectId {
        ("shop".to_owned(), "ca".to_owned())
    }

    fn watching(server: &Arc<Server>) -> Named {
        let mut named = Named::new(server.client(), "shop", "edge");
        named.watch(&BTreeSet::from([ca()]));
        named
    }

    fn is_forbidden(named: &Named) -> bool {
        named.known().get("shop", "ca") == Err(&NoSecret::Forbidden(None))
    }

    async fn listen(named: &mut Named, time: Duration) {
        let for_ever = async {
            loop {
                named.changed().await;
            }
        };
        let _: Result<(), _> = timeout(time, for_ever).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_believed_when_it_lasts_and_tried_ever_less() {
        let server = Arc::new(Server::default());
        let mut named = watching(&server);
        assert!(named.is_awaited(&ca()) && named.unheard() == 1);
        let start = Instant::now();
        assert!(named.changed().await && named.unheard() == 0 && named.is_awaited(&ca()));
        assert!(is_forbidden(&named), "an API that was not served before is refused at once");
        while named.is_awaited(&ca()) {
            named.changed().await;
        }
        assert!(is_forbidden(&named) && start.elapsed() >= REFUSAL);
        assert!(start.elapsed() < REFUSAL + Duration::from_secs(1), "{:?}", start.elapsed());
        let before = server.asked();
        let changed = timeout(Duration::from_secs(3600), async { while !named.changed().await {} }).await;
        assert!(changed.is_err(), "the same answer is taken for news");
        let asked = server.asked() - before;
        assert!((8..=25).contains(&asked), "asked {asked} times in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_is_used_at_once_when_there_is_a_hint_and_by_itself_later() {
        let secret = json!({ "metadata": { "name": "ca", "labels": { "doorman.dev/upstream-tls": "true" } } });
        for (is_hint, most) in [(true, Duration::from_millis(10)), (false, LONGEST_PAUSE * 2)] {
            let server = Arc::new(Server::default());
            let mut named = watching(&server);
            listen(&mut named, Duration::from_secs(100)).await;
            *server.secret.lock().unwrap() = Some(secret.clone());
            let start = Instant::now();
            if is_hint {
                named.ask_again(&ca());
            }
            while named.known().get("shop", "ca").is_err() {
                named.changed().await;
            }
            assert!(start.elapsed() <= most, "{:?}", start.elapsed());
            // What is known needs no hint.
            let asked = server.asked();
            named.ask_again(&ca());
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(server.asked(), asked);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_let_in_again_says_what_there_is() {
        let secret = json!({ "metadata": { "name": "ca", "labels": { "doorman.dev/upstream-tls": "true" } } });
        let server = Arc::new(Server::default());
        *server.secret.lock().unwrap() = Some(secret);
        *server.refused_watches.lock().unwrap() = 3;
        let mut named = watching(&server);
        listen(&mut named, REFUSAL * 4).await;
        assert_eq!(*server.refused_watches.lock().unwrap(), 0);
        assert!(named.known().get("shop", "ca").is_ok(), "it stays refused");
    }

    #[tokio::test(start_paused = true)]
    async fn many_secrets_of_one_namespace_do_not_keep_others_waiting() {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let count = count.clone();
            async move {
                if request.uri().path().contains("/namespaces/shop/") {
                    *count.lock().unwrap() += 1;
                    std::future::pending::<()>().await;
                }
                let refusal = json!({ "kind": "Status", "status": "Failure", "code": 403, "message": "no" });
                let body = Body::from(refusal.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(403).body(body).unwrap())
            }
        });
        let mut named = Named::new(Client::new(service, "edge"), "edge", "main");
        let many = (0..1_000).map(|number| ("shop".to_owned(), format!("s{number}")));
        named.watch(&many.chain([("z".to_owned(), "ca".to_owned())]).collect());
        let heard = async {
            while named.unheard() > 1_000 {
                named.changed().await;
            }
        };
        timeout(Duration::from_secs(1), heard).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), TRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_without_consent_is_not_held_even_where_it_can_be_read() {
        let server = Arc::new(Server::default());
        *server.secret.lock().unwrap() = Some(json!({ "metadata": { "name": "ca" } }));
        let mut named = watching(&server);
        assert!(named.changed().await && !named.is_awaited(&ca()));
        assert_eq!(named.known().get("shop", "ca"), Err(&NoSecret::NoConsent));
    }
}
