//! Sign-in with external stores: what is cached, what every process learns, and what happens while a store is away.

use std::time::{Duration, Instant};

use futures::FutureExt;
use http::header::AUTHORIZATION;
use tokio::task::AbortHandle;

use super::*;
use crate::store::servers::{Server, external, redis_client, with_redis};

const LIFE: Duration = Duration::from_secs(600);
/// Longer than any news travels, and far shorter than the life of the caches.
const SOON: Duration = Duration::from_secs(5);

/// One of several processes over the same stores.
struct Process {
    identity: Arc<Identity>,
    maintenance: AbortHandle,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.maintenance.abort();
    }
}

impl Process {
    fn over(store: Store, settings: &Settings) -> Self {
        let identity = Arc::new(Identity::new(settings, Arc::new(store)).unwrap());
        let maintained = Arc::clone(&identity);
        let maintenance = tokio::spawn(async move { maintained.maintain().await }).abort_handle();
        Self { identity, maintenance }
    }

    async fn token_of(&self, username: &str) -> HeaderMap {
        let user = self.identity.store().user(username).await.unwrap().unwrap();
        let token = self.identity.keys().issue((&user, crate::store::now()), Accesses::default(), LIFE).unwrap();
        HeaderMap::from_iter([(AUTHORIZATION, token.parse().unwrap())])
    }

    async fn answer(&self, headers: &HeaderMap) -> Result<(), Denied> {
        self.identity.identify(headers).await.map(|_| ())
    }

    /// Waits until identifying these headers ends so.
    async fn comes_to(&self, headers: &HeaderMap, expected: Result<(), Denied>) {
        let start = Instant::now();
        while self.answer(headers).await != expected {
            assert!(start.elapsed() < SOON, "still not {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Warm, and subscribed to the news: the subscription's beginning empties the caches once.
    async fn is_warm_and_listening(&self, redis: &Server, processes: usize, headers: &HeaderMap) {
        let mut client = redis_client(redis.port);
        let mut listening = || {
            let command = ::redis::cmd("PUBSUB").arg("NUMSUB").arg("doorman:changes").to_owned();
            command.query::<(String, usize)>(&mut client).unwrap().1
        };
        while listening() != processes {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(self.answer(headers).await, Ok(()));
    }
}

async fn processes(redis: &Server) -> [Process; 2] {
    let settings = external(redis.port, 1, &[]);
    let process = async || Process::over(with_redis(&settings).await, &settings);
    [process().await, process().await]
}

#[tokio::test]
async fn a_warm_request_waits_for_nobody() {
    let redis = Server::redis(&[]);
    let [one, _two] = processes(&redis).await;
    let headers = one.token_of("admin").await;
    one.is_warm_and_listening(&redis, 2, &headers).await;
    assert!(one.identity.identify(&headers).now_or_never().expect("nothing to wait for").is_ok());
}

#[tokio::test]
async fn a_revocation_in_one_process_is_known_in_all_at_once() {
    let redis = Server::redis(&[]);
    let [one, two] = processes(&redis).await;
    let (headers, other) = (one.token_of("admin").await, one.token_of("admin").await);
    two.is_warm_and_listening(&redis, 2, &headers).await;
    assert_eq!(two.answer(&other).await, Ok(()));

    let signed_in = one.identity.sign_in(&headers).await.unwrap();
    one.identity.revoke_token(&signed_in.token).await.unwrap();
    assert_eq!(one.answer(&headers).await, Err(Denied::Unauthorized));
    two.comes_to(&headers, Err(Denied::Unauthorized)).await;
    assert_eq!(two.answer(&other).await, Ok(()));

    one.identity.store().set_user_revoked("admin", true).await.unwrap();
    assert_eq!(one.answer(&other).await, Err(Denied::Unauthorized));
    two.comes_to(&other, Err(Denied::Unauthorized)).await;
    one.identity.store().set_user_revoked("admin", false).await.unwrap();
    two.comes_to(&other, Ok(())).await;
}

#[tokio::test]
async fn while_redis_is_away_the_known_are_served_and_the_unknown_refused() {
    let mut redis = Server::redis(&[]);
    let [one, _two] = processes(&redis).await;
    let (known, unknown) = (one.token_of("admin").await, one.token_of("admin").await);
    one.is_warm_and_listening(&redis, 2, &known).await;
    redis.stop();
    assert_eq!(one.answer(&known).await, Ok(()));
    assert_eq!(one.answer(&unknown).await, Err(Denied::Unavailable));
    redis.restart();
    one.comes_to(&unknown, Ok(())).await;
}

#[tokio::test]
async fn a_redis_that_hangs_delays_nobody_for_long() {
    let redis = Server::redis(&[]);
    let [one, _two] = processes(&redis).await;
    let (known, unknown) = (one.token_of("admin").await, one.token_of("admin").await);
    one.is_warm_and_listening(&redis, 2, &known).await;
    redis.hang();
    let start = Instant::now();
    assert_eq!(one.answer(&known).await, Ok(()));
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(one.answer(&unknown).await, Err(Denied::Unavailable));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_changed_user_is_seen_by_every_process() {
    let mongo = Server::mongo();
    let redis = Server::redis(&[]);
    let settings = external(redis.port, mongo.port, &[]);
    let process = async || Process::over(Store::open(&settings).await.unwrap(), &settings);
    let (one, two) = (process().await, process().await);
    let amy = User::new("amy", "amy@example.com", "user");
    one.identity.store().save_user(amy.clone()).await.unwrap();
    let headers = one.token_of("amy").await;
    two.is_warm_and_listening(&redis, 2, &headers).await;

    one.identity.store().save_user(User { active: false, ..amy }).await.unwrap();
    assert_eq!(one.answer(&headers).await, Err(Denied::Unauthorized));
    two.comes_to(&headers, Err(Denied::Unauthorized)).await;
}

#[tokio::test]
async fn while_mongodb_is_away_the_known_are_served_and_the_unknown_refused() {
    let mut mongo = Server::mongo();
    let redis = Server::redis(&[]);
    let settings = external(redis.port, mongo.port, &[]);
    let one = Process::over(Store::open(&settings).await.unwrap(), &settings);
    let amy = User::new("amy", "amy@example.com", "user");
    one.identity.store().save_user(amy).await.unwrap();
    let (known, unknown) = (one.token_of("admin").await, one.token_of("amy").await);
    one.is_warm_and_listening(&redis, 1, &known).await;
    mongo.stop();
    assert_eq!(one.answer(&known).await, Ok(()));
    assert_eq!(one.answer(&unknown).await, Err(Denied::Documents));
    mongo.restart();
    let start = Instant::now();
    while one.answer(&unknown).await.is_err() {
        assert!(start.elapsed() < 3 * SOON, "MongoDB is back and nobody noticed");
    }
}
