//! The ways to Redis, against real servers: one, behind Sentinels, a cluster; with passwords and over TLS.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use futures::FutureExt;

use super::*;
use crate::{
    settings::Settings,
    store::{
        Counter, Family, Span, Store, Taken, Window, now,
        servers::{Certificates, Server, external, free_port, redis_client as client, with_redis},
        thrice,
    },
};

/// Longer than a break may last, fail-over included.
const PATIENCE: Duration = Duration::from_secs(20);
const NOBODY: u16 = 1;

fn command(port: u16, arguments: &[&str]) -> ::redis::Value {
    asked(port, arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

/// What a server says that may cut the question off.
fn asked<T: FromRedisValue>(port: u16, arguments: &[&str]) -> RedisResult<T> {
    let mut command = ::redis::cmd(arguments[0]);
    arguments[1..].iter().for_each(|argument| {
        command.arg(argument);
    });
    command.query(&mut Client::open(("127.0.0.1", port))?.get_connection()?)
}

async fn error_of(settings: &Settings) -> String {
    Shared::connect(&settings.storage).await.err().expect("it connects").to_string()
}

/// Waits until this is so.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// News reaches those who follow, maybe after they have subscribed again.
async fn news_travels(from: &Store, to: &Store) {
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    to.on_change(move |change| drop(heard.send(change.to_string())));
    let follow = to.follow_changes();
    let announce = async {
        let start = Instant::now();
        loop {
            from.announce(crate::store::Change::Document(crate::store::Collection::Users, "amy")).await;
            while let Some(Some(change)) = hears.recv().now_or_never() {
                if change == "users:amy" {
                    return;
                }
            }
            assert!(start.elapsed() < PATIENCE, "no news");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! { () = announce => {}, () = follow => {} }
}

async fn serves(store: &Store) {
    let window = Window::at(12_345, Duration::from_secs(300));
    let user = format!("u{}", uuid::Uuid::new_v4());
    assert_eq!(store.count(&user, window, 12_345).await.unwrap(), 1);
    assert_eq!(store.count(&user, window, 12_345).await.unwrap(), 2);
    store.revoke_token(&user, "id", now() + 100).await.unwrap();
    assert!(store.is_token_revoked(&user, "id").await.unwrap());
    assert!(!store.is_user_revoked(&user).await.unwrap());
    assert_eq!(store.fallbacks().get(), 0, "it counted in Redis");
    news_travels(store, store).await;
}

mod logins {
    use super::*;

    #[tokio::test]
    async fn a_user_of_the_access_list_signs_in_with_any_password() {
        const PASSWORD: &str = "p@ss: w/ör%d";
        let server = Server::redis(&[]);
        let password = format!(">{PASSWORD}");
        let rights = ["~*", "&doorman:changes", "+@read", "+@write", "+@connection", "+@transaction", "+@scripting"];
        let user = ["ACL", "SETUSER", "doorman", "on", &password, "+@pubsub"];
        command(server.port, &[&user[..], &rights[..]].concat());
        command(server.port, &["ACL", "SETUSER", "default", "off"]);
        let login = [("REDIS_USERNAME", "doorman"), ("REDIS_PASSWORD", PASSWORD)];
        serves(&with_redis(&external(server.port, NOBODY, &login)).await).await;
    }

    #[tokio::test]
    async fn a_wrong_password_and_a_missing_one_are_called_so() {
        let server = Server::redis(&["--requirepass", "right"]);
        let wrong = error_of(&external(server.port, NOBODY, &[("REDIS_PASSWORD", "wrong")])).await;
        assert!(wrong.contains("REDIS_PASSWORD") && wrong.contains("authentication failed"), "{wrong}");
        let none = error_of(&external(server.port, NOBODY, &[])).await;
        assert!(none.contains("REDIS_PASSWORD") && none.contains("NOAUTH"), "{none}");
    }
}

mod tls {
    use super::*;

    #[tokio::test]
    async fn the_connection_is_encrypted_and_checked() {
        let files = Certificates::new();
        let server = Server::redis_tls(&files, false);
        let (ca, other) = (files.path("ca.pem"), files.path("other-ca.pem"));
        let trusted = [("REDIS_TLS", "true"), ("REDIS_TLS_CA_FILE", &*ca)];
        serves(&with_redis(&external(server.port, NOBODY, &trusted)).await).await;

        let untrusted = [("REDIS_TLS", "true"), ("REDIS_TLS_CA_FILE", &*other)];
        let error = error_of(&external(server.port, NOBODY, &untrusted)).await;
        assert!(error.contains("certificate") && error.contains("REDIS_TLS_CA_FILE"), "{error}");
        let plain = error_of(&external(server.port, NOBODY, &[])).await;
        assert!(plain.contains("REDIS_TLS"), "{plain}");
    }

    #[tokio::test]
    async fn tls_to_a_plain_server_is_called_so() {
        let server = Server::redis(&[]);
        let error = error_of(&external(server.port, NOBODY, &[("REDIS_TLS", "true")])).await;
        assert!(error.contains("REDIS_TLS"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_is_shown_to_servers_that_ask_for_one() {
        let files = Certificates::new();
        let server = Server::redis_tls(&files, true);
        let (ca, certificate, key) = (files.path("ca.pem"), files.path("client.pem"), files.path("client.key"));
        let anonymous = [("REDIS_TLS", "true"), ("REDIS_TLS_CA_FILE", &*ca)];
        let error = error_of(&external(server.port, NOBODY, &anonymous)).await;
        assert!(error.contains("REDIS_TLS"), "{error}");
        let known = [&anonymous[..], &[("REDIS_TLS_CERT_FILE", &certificate), ("REDIS_TLS_KEY_FILE", &key)]].concat();
        serves(&with_redis(&external(server.port, NOBODY, &known)).await).await;
    }
}

mod one_server {
    use super::*;

    #[tokio::test]
    async fn while_it_is_away_answers_come_at_once_and_after_its_return_by_themselves() {
        let mut server = Server::redis(&[]);
        let store = with_redis(&external(server.port, NOBODY, &[])).await;
        server.stop();
        let _ = store.is_user_revoked("amy").await;
        eventually("it is known to be away", async || store.is_user_revoked("amy").await.is_err()).await;
        let start = Instant::now();
        for _ in 0..50 {
            assert!(store.is_user_revoked("amy").await.is_err());
        }
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        server.restart();
        eventually("it is back", async || store.is_user_revoked("amy").await.is_ok()).await;
        serves(&store).await;
    }

    #[tokio::test]
    async fn one_that_hangs_costs_one_wait_and_not_one_for_each_request() {
        let server = Server::redis(&[]);
        let store = with_redis(&external(server.port, NOBODY, &[])).await;
        server.hang();
        let start = Instant::now();
        assert!(store.is_user_revoked("amy").await.is_err());
        assert!(start.elapsed() < 2 * TIMEOUT, "{:?}", start.elapsed());
        // The one try to connect anew is worth waiting for; after it, nobody waits.
        let _ = store.is_user_revoked("amy").await;
        eventually("it is known to be away", async || {
            let start = Instant::now();
            store.is_user_revoked("amy").await.is_err() && start.elapsed() < TIMEOUT / 10
        })
        .await;
        server.go_on();
        eventually("it is back", async || store.is_user_revoked("amy").await.is_ok()).await;
    }

    #[tokio::test]
    async fn news_goes_on_after_a_restart_and_after_a_hang() {
        let mut server = Server::redis(&[]);
        let settings = external(server.port, NOBODY, &[]);
        let (one, two) = (with_redis(&settings).await, with_redis(&settings).await);
        news_travels(&one, &two).await;
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        two.on_change(move |change| {
            if change == crate::store::Change::Everything {
                let _ = begun.send(());
            }
        });
        let follow = two.follow_changes();
        let test = async {
            begins.recv().await.unwrap();
            server.restart();
            // The break is noticed, and everything that was known is called in question.
            tokio::time::timeout(PATIENCE, begins.recv()).await.unwrap().unwrap();
            server.hang();
            assert!(two.is_user_revoked("amy").await.is_err());
            server.go_on();
            tokio::time::timeout(PATIENCE, begins.recv()).await.unwrap().unwrap();
        };
        tokio::select! { () = test => {}, () = follow => {} }
    }

    #[tokio::test]
    async fn a_replica_calls_for_another_connection_and_a_full_server_does_not() {
        let server = Server::redis(&[]);
        let Servers::Standalone(target) = servers::of(&external(server.port, NOBODY, &[]).storage).unwrap() else {
            panic!()
        };
        let mut connection = target.get_multiplexed_async_connection().await.unwrap();
        let write = ::redis::cmd("SET").arg("a").arg(1).to_owned();
        let mut both = ::redis::pipe();
        both.atomic().cmd("SET").arg("a").arg(1).ignore().incr("a", 1);

        command(server.port, &["REPLICAOF", "127.0.0.1", "1"]);
        let error = write.exec_async(&mut connection).await.unwrap_err();
        assert!(link::is_broken(&error), "{error}");
        let error = both.query_async::<(u64,)>(&mut connection).await.unwrap_err();
        assert!(link::is_broken(&error), "{error}");

        command(server.port, &["REPLICAOF", "NO", "ONE"]);
        command(server.port, &["CONFIG", "SET", "maxmemory", "1"]);
        let error = write.exec_async(&mut connection).await.unwrap_err();
        assert!(!link::is_broken(&error), "{error}");
        let error = both.query_async::<(u64,)>(&mut connection).await.unwrap_err();
        assert!(!link::is_broken(&error), "{error}");
    }
}

mod sentinels {
    use super::*;

    /// A master, its replica and three Sentinels, two of which must agree.
    struct Watched {
        master: Server,
        replica: Server,
        sentinels: Vec<Server>,
    }

    impl Watched {
        fn start(more: &str, arguments: &[&str]) -> Self {
            let master = Server::redis(arguments);
            let of = master.port.to_string();
            let replica = Server::redis(&[arguments, &["--replicaof", "127.0.0.1", &of]].concat());
            let sentinels: Vec<_> = (0..3).map(|_| Server::sentinel(master.port, 2, more)).collect();
            for sentinel in sentinels.iter().filter(|_| more.is_empty()) {
                // They look every ten seconds otherwise.
                let periods = ["INFO-PERIOD", "200", "PUBLISH-PERIOD", "200", "ASK-PERIOD", "200"];
                command(sentinel.port, &[&["SENTINEL", "DEBUG"], &periods[..]].concat());
            }
            Self { master, replica, sentinels }
        }

        /// Waits until every Sentinel knows the replica and the others.
        async fn is_complete(&self) {
            for sentinel in &self.sentinels {
                eventually("the Sentinels know each other", async || {
                    let mut client = client(sentinel.port);
                    let command = ::redis::cmd("SENTINEL").arg("MASTER").arg("main").to_owned();
                    let state: std::collections::HashMap<String, String> = command.query(&mut client).unwrap();
                    state["num-slaves"] == "1" && state["num-other-sentinels"] == "2"
                })
                .await;
            }
        }

        fn settings(&self, changes: &[(&str, &str)]) -> Settings {
            let hosts: Vec<_> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
            let hosts = hosts.join(",");
            let own = [("REDIS_HOST", ""), ("REDIS_SENTINEL_HOSTS", &*hosts), ("REDIS_SENTINEL_MASTER", "main")];
            external(NOBODY, NOBODY, &[&own[..], changes].concat())
        }
    }

    #[tokio::test]
    async fn a_fail_over_is_followed_without_a_restart() {
        let mut watched = Watched::start("", &[]);
        watched.is_complete().await;
        let settings = watched.settings(&[]);
        let (one, two) = (with_redis(&settings).await, with_redis(&settings).await);
        serves(&one).await;
        one.set_user_revoked("amy", true).await.unwrap();
        // Sentinels cut all connections to a server whose role they change, those of the test too.
        let is_revoked_at =
            |port, user: &str| asked(port, &["EXISTS", &format!("jwt:revoke_all:{user}")]).unwrap_or(false);
        eventually("the replica has it", async || is_revoked_at(watched.replica.port, "amy")).await;

        watched.master.stop();
        eventually("the new master answers", async || {
            one.is_user_revoked("amy").await.is_ok_and(|is_revoked| is_revoked)
        })
        .await;
        eventually("it takes writes", async || two.set_user_revoked("bob", true).await.is_ok()).await;
        let new_master = watched.replica.port;
        eventually("the new master has it", async || is_revoked_at(new_master, "bob")).await;
        news_travels(&one, &two).await;

        // The old master comes back as a replica; the way back is one that someone asks for, with nothing broken.
        watched.master.restart();
        let old_master = watched.master.port;
        let says = |parts: &[&str]| {
            let role = asked::<::redis::Value>(old_master, &["ROLE"]).map(|role| format!("{role:?}"));
            role.is_ok_and(|role| parts.iter().all(|part| role.contains(part)))
        };
        eventually("the old master follows the new one", async || says(&["slave", "connected"])).await;
        // One order is not enough: a fail-over that does not get on in its time is given up.
        eventually("the old master is master again", async || {
            let is_master = says(&["master"]);
            if !is_master {
                let _ = asked::<()>(watched.sentinels[0].port, &["SENTINEL", "FAILOVER", "main"]);
            }
            is_master
        })
        .await;
        eventually("writes reach it", async || {
            let _ = one.set_user_revoked("eve", true).await;
            is_revoked_at(old_master, "eve")
        })
        .await;
        news_travels(&two, &one).await;
    }

    #[tokio::test]
    async fn sentinels_have_a_password_of_their_own_and_one_of_them_is_enough() {
        let auth = "sentinel auth-pass main of-redis\nrequirepass of-sentinels\nsentinel sentinel-pass of-sentinels";
        let mut watched = Watched::start(auth, &["--requirepass", "of-redis", "--masterauth", "of-redis"]);
        let login = [("REDIS_PASSWORD", "of-redis"), ("REDIS_SENTINEL_PASSWORD", "of-sentinels")];
        serves(&with_redis(&watched.settings(&login)).await).await;
        let error = error_of(&watched.settings(&login[..1])).await;
        assert!(error.contains("REDIS_SENTINEL_PASSWORD"), "{error}");
        watched.sentinels[0].stop();
        watched.sentinels[1].stop();
        serves(&with_redis(&watched.settings(&login)).await).await;
        let unknown = [&login[..], &[("REDIS_SENTINEL_MASTER", "other")]].concat();
        let error = error_of(&watched.settings(&unknown)).await;
        assert!(error.contains("REDIS_SENTINEL_MASTER"), "{error}");
    }
}

mod cluster {
    use super::*;

    /// Three masters with a third of the slots each, and a replica of the first.
    async fn start() -> Vec<Server> {
        let node = || {
            Server::redis_with(|_| {
                let bus = free_port().to_string();
                let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
                arguments.iter().map(|argument| (*argument).to_owned()).collect()
            })
        };
        let nodes: Vec<_> = (0..4).map(|_| node()).collect();
        for (at, node) in nodes.iter().take(3).enumerate() {
            let (from, to) = ((at * 5461 + at.min(1)).to_string(), (at * 5461 + 5461).min(16_383).to_string());
            command(node.port, &["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
        }
        let first = nodes[0].port;
        for node in &nodes[1..] {
            // The first node hears of its bus port from the node itself.
            let bus = config(node.port, "cluster-port");
            command(first, &["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &bus]);
        }
        let id: String = ::redis::cmd("CLUSTER").arg("MYID").query(&mut client(first)).unwrap();
        eventually("the replica knows its master", async || {
            let command = ::redis::cmd("CLUSTER").arg("REPLICATE").arg(&id).to_owned();
            command.exec(&mut client(nodes[3].port)).is_ok()
        })
        .await;
        for node in &nodes {
            eventually("the cluster is well", async || {
                let info: String = ::redis::cmd("CLUSTER").arg("INFO").query(&mut client(node.port)).unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:4")
            })
            .await;
        }
        eventually("the replica is in step", async || {
            let info: String = ::redis::cmd("INFO").arg("replication").query(&mut client(nodes[3].port)).unwrap();
            info.contains("master_link_status:up")
        })
        .await;
        nodes
    }

    fn config(port: u16, name: &str) -> String {
        let pair: Vec<String> = ::redis::cmd("CONFIG").arg("GET").arg(name).query(&mut client(port)).unwrap();
        pair[1].clone()
    }

    fn settings(nodes: &[Server]) -> Settings {
        let hosts: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        external(NOBODY, NOBODY, &[("REDIS_HOST", &hosts.join(","))])
    }

    #[tokio::test]
    async fn all_slots_are_used_and_a_fail_over_is_followed() {
        let mut nodes = start().await;
        let settings = settings(&nodes[..3]);
        let (one, two) = (with_redis(&settings).await, with_redis(&settings).await);
        serves(&one).await;
        let users: Vec<_> = (0..60).map(|n| format!("user{n}")).collect();
        for user in &users {
            one.set_user_revoked(user, true).await.unwrap();
        }
        for node in &nodes[..3] {
            let keys: usize = ::redis::cmd("DBSIZE").query(&mut client(node.port)).unwrap();
            assert!(keys > 5, "keys are spread");
        }
        news_travels(&one, &two).await;

        // Their counters lie on different nodes.
        let counter = |key: &str, limit| Counter::of_requests(key, Span::Sliding(Duration::from_secs(60)), limit);
        let counters = [counter("{amy}", 1_000), counter("{bob}", 50), counter("{global}", 2_000)];
        let stores = [one, two];
        assert!(limits::admitted(&stores, &counters, 300).await <= 50);
        let rest = limits::admitted(&stores[..1], &counters, 50).await;
        let taken = stores[0].take(&counters).await.unwrap();
        assert_eq!((taken.refused, taken.readings[1].used), (Some(1), 50), "{rest} of the rest");
        assert_eq!((taken.readings[0].used, taken.readings[2].used), (50, 50), "what is refused is given back");
        stores[1].reset_counters().await.unwrap();
        let [one, two] = stores;

        nodes[0].stop();
        eventually("all users are known again", async || {
            for user in &users {
                if !two.is_user_revoked(user).await.is_ok_and(|is_revoked| is_revoked) {
                    return false;
                }
            }
            true
        })
        .await;
        eventually("writes are taken", async || {
            for user in &users {
                if one.set_user_revoked(user, false).await.is_err() {
                    return false;
                }
            }
            true
        })
        .await;
        news_travels(&one, &two).await;
    }

    #[tokio::test]
    async fn a_wrong_password_is_called_so() {
        let server = Server::redis_with(|_| {
            let bus = free_port().to_string();
            let arguments = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--requirepass", "right"];
            arguments.iter().map(|argument| (*argument).to_owned()).collect()
        });
        let wrong = [("REDIS_CLUSTER", "true"), ("REDIS_PASSWORD", "wrong")];
        let error = error_of(&external(server.port, NOBODY, &wrong)).await;
        assert!(error.contains("REDIS_PASSWORD"), "{error}");
    }

    #[tokio::test]
    async fn when_all_nodes_were_away_it_comes_back_by_itself() {
        let mut server = Server::redis_with(|_| {
            let arguments = ["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()];
            arguments.iter().map(|argument| (*argument).to_owned()).collect()
        });
        command(server.port, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        eventually("the cluster is well", async || {
            let info: String = ::redis::cmd("CLUSTER").arg("INFO").query(&mut client(server.port)).unwrap();
            info.contains("cluster_state:ok")
        })
        .await;
        let store = with_redis(&external(server.port, NOBODY, &[("REDIS_CLUSTER", "true")])).await;
        serves(&store).await;
        server.stop();
        let start = Instant::now();
        assert!(store.is_user_revoked("amy").await.is_err());
        assert!(start.elapsed() < 2 * TIMEOUT, "{:?}", start.elapsed());
        server.restart();
        eventually("it is back", async || store.is_user_revoked("amy").await.is_ok()).await;
        serves(&store).await;
    }
}

mod limits {
    use ::redis::Commands;

    use super::*;

    #[tokio::test]
    async fn without_redis_they_are_counted_here_or_not_known_as_the_setting_says() {
        let mut server = Server::redis(&[]);
        let settings = |mode: &str| external(server.port, NOBODY, &[("DOORMAN_LIMITS_FAIL_MODE", mode)]);
        let (open, closed) = (settings("Open"), settings("Closed"));
        let (open, closed) = (with_redis(&open).await, with_redis(&closed).await);
        let window = Window::at(12_345, Duration::from_secs(300));
        assert_eq!(open.count("a", window, 12_345).await.unwrap(), 1);
        assert_eq!(closed.count("a", window, 12_345).await.unwrap(), 2);
        assert_eq!((open.fallbacks().get(), closed.fallbacks().get()), (0, 0));
        server.stop();
        assert_eq!(open.count("a", window, 12_345).await.unwrap(), 1);
        assert_eq!(open.count("a", window, 12_345).await.unwrap(), 2);
        assert!(matches!(closed.count("a", window, 12_345).await, Err(StoreError::Shared(_))));
        assert_eq!((open.fallbacks().get(), closed.fallbacks().get()), (2, 1));
        let counter = [per_minute("a", 1)];
        assert_eq!(open.take(&counter).await.unwrap().refused, None);
        assert_eq!(open.take(&counter).await.unwrap().refused, Some(0));
        assert!(matches!(closed.take(&counter).await, Err(StoreError::Shared(_))));
        server.restart();
        eventually("Redis counts again", async || closed.take(&counter).await.is_ok()).await;
        assert_eq!(closed.take(&counter).await.unwrap().refused, Some(0), "the script is known again");
    }

    fn per_minute(key: &str, limit: u64) -> Counter {
        Counter::of_requests(key, Span::Sliding(Duration::from_secs(60)), limit)
    }

    /// How many of so many requests, sent to these processes at once, are let through.
    pub(super) async fn admitted(stores: &[Store], counters: &[Counter], requests: usize) -> usize {
        let requests = (0..requests).map(|number| stores[number % stores.len()].take(counters));
        let taken = futures::future::join_all(requests).await;
        taken.into_iter().filter(|taken| taken.as_ref().unwrap().refused.is_none()).count()
    }

    #[tokio::test]
    async fn a_limit_is_exact_across_processes_and_what_is_refused_counts_nowhere() {
        let server = Server::redis(&[]);
        let settings = external(server.port, NOBODY, &[]);
        let stores = [with_redis(&settings).await, with_redis(&settings).await, with_redis(&settings).await];
        let counters = [per_minute("wide:{amy}", 1_000), per_minute("narrow:{amy}", 100)];
        assert_eq!(admitted(&stores, &counters, 500).await, 100);
        let readings = stores[0].take(&counters).await.unwrap().readings;
        assert_eq!((readings[0].used, readings[1].used), (100, 100));
        let frees_in = readings[1].frees_in;
        assert!(Duration::from_secs(50) < frees_in && frees_in <= Duration::from_secs(61), "{frees_in:?}");
        let left: i64 = client(server.port).pttl("narrow:{amy}").unwrap();
        assert!((50_000..=62_000).contains(&left), "{left}");
        stores[0].reset_counters().await.unwrap();
    }

    #[tokio::test]
    async fn a_window_frees_what_it_took() {
        let server = Server::redis(&[]);
        let store = with_redis(&external(server.port, NOBODY, &[])).await;
        let counter = [Counter::of_requests("a", Span::Sliding(Duration::from_millis(400)), 2)];
        let start = Instant::now();
        assert_eq!(admitted(std::slice::from_ref(&store), &counter, 5).await, 2);
        eventually("there is room again", async || store.take(&counter).await.unwrap().refused.is_none()).await;
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn in_every_store_the_same_counters_start_again_when_told_to() {
        let server = Server::redis(&[]);
        let redis = with_redis(&external(server.port, NOBODY, &[])).await;
        for (what, store) in [("memory", Store::in_memory()), ("Redis", redis)] {
            let window = Window::at(12_345, Duration::from_secs(300));
            let mut started = Vec::new();
            for is_again in [false, true] {
                for family in Family::ALL {
                    let name = |rest: &str| family.named(rest);
                    let counter = [per_minute(&name("{amy}:60"), 1)];
                    let is_free = store.take(&counter).await.unwrap().refused.is_none();
                    let is_first = store.count(&name("192.0.2.1"), window, 12_345).await.unwrap() == 1;
                    let bytes: Arc<str> = name("{amy}:bytes").into();
                    store.book(&[(bytes.clone(), now() + 60)], 7).await;
                    let is_new = store.totals(&[bytes]).await.unwrap() == [7];
                    assert!(is_free == is_first && is_first == is_new, "{what} {family:?}");
                    if is_again && is_free {
                        started.push(family);
                    }
                }
                store.reset_counters().await.unwrap();
            }
            assert_eq!(started, [Family::Rate, Family::Throttle, Family::Window], "{what}");
        }
    }

    /// Parts of a window by their numbers.
    type Parts = BTreeMap<u64, u64>;

    /// What a window holds, and when enough of it has left for `need`, as the law says it: a part counts until all of it
    /// has left.
    fn look(held: &mut Parts, now: u64, [part, parts, limit, need]: [u64; 4]) -> [u64; 2] {
        held.retain(|number, _| number + parts >= now / part);
        let used: u64 = held.values().sum();
        let (mut left, mut frees) = (used, (parts + 1) * part);
        for (number, count) in held {
            left -= *count;
            frees = (*number + parts + 1) * part - now;
            if left + need <= limit {
                break;
            }
        }
        [used, frees]
    }

    #[tokio::test]
    async fn windows_hold_what_their_law_says_however_time_goes() {
        const PARTS: u64 = 4;
        // The server's clock can't be set, so the script is told the time.
        let code = super::super::limits::TAKE.replace("redis.call('TIME')", "{ARGV[#ARGV], 0}");
        assert!(!code.contains("TIME"));
        let server = Server::redis(&[]);
        let mut connection = client(server.port);
        let (mut model, mut now) = (BTreeMap::<u64, Parts>::new(), 1_700_000_000_u64);
        for step in 0..3_000 {
            // Mostly on, sometimes far, sometimes back.
            now = match fastrand::u32(0..20) {
                0 => now + fastrand::u64(0..60),
                1 => now - fastrand::u64(0..15),
                _ => now + fastrand::u64(0..3),
            };
            let counters: Vec<_> = (0..fastrand::u64(1..4))
                .map(|_| {
                    let window = fastrand::u64(1..5);
                    let (limit, need, add) = (10 + window, fastrand::u64(1..4), fastrand::u64(0..4));
                    (window, [window * 1_000, PARTS, limit, need], add)
                })
                .collect();
            let mut command = ::redis::cmd("EVAL");
            command.arg(&code).arg(counters.len());
            for (window, ..) in &counters {
                command.arg(format!("{{w}}{window}"));
            }
            for (_, numbers, add) in &counters {
                command.arg(numbers).arg(add).arg(3_600_000);
            }
            let answer: Vec<u64> = command.arg(now).query(&mut connection).unwrap();
            let millis = now * 1_000;
            let readings: Vec<_> = counters
                .iter()
                .map(|(window, numbers, _)| look(model.entry(*window).or_default(), millis, *numbers))
                .collect();
            let refuses =
                |(counter, reading): (&(u64, [u64; 4], u64), &[u64; 2])| reading[0] + counter.1[3] > counter.1[2];
            let refused = counters.iter().zip(&readings).position(refuses).map_or(0, |place| place as u64 + 1);
            let expected: Vec<_> = [refused, millis].into_iter().chain(readings.into_iter().flatten()).collect();
            assert_eq!(answer, expected, "step {step}: {counters:?} {model:?}");
            if refused == 0 {
                for (window, [part, ..], add) in counters.iter().filter(|(_, _, add)| *add > 0) {
                    *model.entry(*window).or_default().entry(millis / part).or_default() += add;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_counter_costs_a_command_to_look_at_and_one_to_count() {
        let server = Server::redis(&[]);
        let store = with_redis(&external(server.port, NOBODY, &[])).await;
        let calendar = |key: &str, add| Counter {
            add,
            ..Counter::of_requests(key, Span::Until { end: now() + 60, kept: now() + 120 }, 99)
        };
        let counters = [per_minute("a", 99), per_minute("b", 99), calendar("c", 1), calendar("d", 0)];
        store.take(&counters).await.unwrap();
        command(server.port, &["CONFIG", "RESETSTAT"]);
        store.take(&counters).await.unwrap();
        let info: String = asked(server.port, &["INFO", "commandstats"]).unwrap();
        let calls = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
            line.and_then(|rest| rest.split(',').next()?.parse::<u64>().ok()).unwrap_or_default()
        };
        let named = ["evalsha", "time", "hmget", "mget", "hset", "incrby"].map(calls);
        // A part of a minute may end between the two calls.
        let beginnings = calls("pexpire");
        assert!(beginnings <= 2, "{info}");
        assert_eq!(named, [1, 1, 2, 1, 2, 1], "{info}");
        assert_eq!(calls("hgetall") + calls("get"), 0, "{info}");
    }

    /// What one process decides is what all decide.
    #[tokio::test]
    async fn redis_and_memory_decide_alike() {
        let server = Server::redis(&[]);
        let (redis, memory) = (with_redis(&external(server.port, NOBODY, &[])).await, Store::in_memory());
        let end = now() + 3_600;
        for step in 0..400 {
            let counters: Vec<_> = (0..fastrand::usize(1..5))
                .map(|_| {
                    let number = fastrand::u64(0..6);
                    let (need, add) = (fastrand::u64(1..3), fastrand::u64(0..3));
                    let span = match number % 2 {
                        0 => Span::Sliding(Duration::from_secs(3_600 * (1 + number))),
                        _ => Span::Until { end, kept: end },
                    };
                    Counter { need, add, ..Counter::of_requests(format!("k{number}"), span, 5 + 7 * number) }
                })
                .collect();
            let (one, other) = (redis.take(&counters).await.unwrap(), memory.take(&counters).await.unwrap());
            let used = |taken: &Taken| taken.readings.iter().map(|reading| reading.used).collect::<Vec<_>>();
            assert_eq!((one.refused, used(&one)), (other.refused, used(&other)), "step {step}: {counters:?}");
        }
    }
}

#[tokio::test]
async fn a_start_names_the_sentinels_and_the_nodes_it_tried() {
    for (changes, place) in [
        (&[("REDIS_HOST", "127.0.0.1:1,127.0.0.1:2")][..], "127.0.0.1:1,127.0.0.1:2"),
        (
            &[("REDIS_HOST", ""), ("REDIS_SENTINEL_HOSTS", "127.0.0.1:3"), ("REDIS_SENTINEL_MASTER", "main")],
            "127.0.0.1:3",
        ),
    ] {
        let settings = external(NOBODY, NOBODY, changes);
        let connect = || Shared::connect(&settings.storage);
        let error =
            thrice("Redis", crate::store::places(&settings.storage).1, connect).await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("Cannot connect to Redis at {place} after 3 tries")), "{error}");
    }
}
