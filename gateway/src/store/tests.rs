//! The stores against real servers.

use ::redis::Commands;
use doorman_crds::role::Permission;
use mongodb::bson::{Document as Bson, doc};

use super::{
    servers::{Server, external, redis_client, with_redis},
    *,
};

/// A port that nobody listens on.
const NOBODY: u16 = 1;

async fn collection(server: &Server, name: &str) -> mongodb::Collection<Bson> {
    let uri = format!("mongodb://127.0.0.1:{}", server.port);
    mongodb::Client::with_uri_str(uri).await.unwrap().database("doorman").collection(name)
}

mod redis_parts {
    use super::*;

    #[tokio::test]
    async fn a_counter_counts_in_its_window_and_ends_with_it() {
        let server = Server::redis(&[]);
        let (one, two) =
            join(with_redis(&external(server.port, NOBODY, &[])), with_redis(&external(server.port, NOBODY, &[])))
                .await;
        let window = Window::at(12_345, Duration::from_secs(300));
        assert_eq!(one.count("ip_rate_limit:192.0.2.1", window, 12_345).await.unwrap(), 1);
        assert_eq!(two.count("ip_rate_limit:192.0.2.1", window, 12_345).await.unwrap(), 2);
        assert_eq!(two.count("ip_rate_limit:192.0.2.2", window, 12_345).await.unwrap(), 1);
        let left: i64 = redis_client(server.port).ttl("ip_rate_limit:192.0.2.1:41").unwrap();
        assert!((295..=300).contains(&left), "{left}");
    }

    #[tokio::test]
    async fn counts_go_on_in_the_process_while_redis_is_away() {
        let mut server = Server::redis(&[]);
        let store = with_redis(&external(server.port, NOBODY, &[])).await;
        let window = Window::at(12_345, Duration::from_secs(300));
        assert_eq!(store.count("a", window, 12_345).await.unwrap(), 1);
        server.stop();
        assert_eq!(store.count("a", window, 12_345).await.unwrap(), 1);
        assert_eq!(store.count("a", window, 12_345).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn revocations_are_the_keys_that_existing_installations_have() {
        let server = Server::redis(&[]);
        let (store, mut client) = (with_redis(&external(server.port, NOBODY, &[])).await, redis_client(server.port));
        store.revoke_token("amy", "id", now() + 100).await.unwrap();
        let left: i64 = client.ttl("jwt:revoked:amy:id").unwrap();
        assert!((95..=100).contains(&left), "{left}");
        assert!(store.is_token_revoked("amy", "id").await.unwrap());
        assert!(!store.is_token_revoked("amy", "other").await.unwrap());

        store.set_user_revoked("amy", true).await.unwrap();
        assert_eq!(client.get::<_, String>("jwt:revoke_all:amy").unwrap(), "1");
        assert_eq!(client.ttl::<_, i64>("jwt:revoke_all:amy").unwrap(), -1);
        assert!(store.is_user_revoked("amy").await.unwrap());
        store.set_user_revoked("amy", false).await.unwrap();
        assert!(!store.is_user_revoked("amy").await.unwrap());

        store.remember_csrf("amy", "token").await.unwrap();
        assert_eq!(store.csrf("amy").await.unwrap().as_deref(), Some("token"));
        assert_eq!(store.csrf("bob").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_password_and_a_database_number_are_used() {
        let server = Server::redis(&["--requirepass", "open sesame"]);
        let right = external(server.port, NOBODY, &[("REDIS_PASSWORD", "open sesame"), ("REDIS_DB", "3")]);
        with_redis(&right).await.set_user_revoked("amy", true).await.unwrap();
        let mut client = redis_client(server.port);
        ::redis::cmd("AUTH").arg("open sesame").exec(&mut client).unwrap();
        ::redis::cmd("SELECT").arg(3).exec(&mut client).unwrap();
        assert!(client.exists::<_, bool>("jwt:revoke_all:amy").unwrap());
        let wrong = external(server.port, NOBODY, &[("REDIS_PASSWORD", "wrong")]);
        assert!(redis::Shared::connect(&wrong.storage).await.is_err());
    }

    #[tokio::test]
    async fn health_follows_the_server() {
        let mut server = Server::redis(&[]);
        let store = with_redis(&external(server.port, NOBODY, &[])).await;
        assert_eq!(store.health(), Health { mongodb: true, redis: true });
        let becomes = async |expected| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            while store.health().redis != expected {
                assert!(tokio::time::Instant::now() < deadline, "health stays {:?}", store.health());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let test = async {
            server.stop();
            becomes(false).await;
            server.restart();
            becomes(true).await;
            server.hang();
            becomes(false).await;
        };
        tokio::select! { () = test => {}, () = store.maintain() => {} }
    }

    #[tokio::test]
    async fn a_start_without_redis_says_what_is_missing() {
        let started = tokio::time::Instant::now();
        let settings = external(NOBODY, NOBODY, &[("REDIS_PASSWORD", "open sesame")]);
        let connect = || redis::Shared::connect(&settings.storage);
        let error = thrice("Redis", places(&settings.storage).1, connect).await.err().unwrap().to_string();
        assert!(error.starts_with("Cannot connect to Redis at 127.0.0.1:1 after 3 tries"), "{error}");
        assert!(!error.contains("sesame"));
        assert!(started.elapsed() >= Duration::from_secs(3));
    }
}

mod mongo_parts {
    use super::*;

    #[tokio::test]
    async fn a_fresh_database_gets_the_administrator_role_and_groups_once() {
        let mongo = Server::mongo();
        let redis = Server::redis(&[]);
        let settings = external(redis.port, mongo.port, &[]);
        // Several pods may start at once.
        let (one, two) = join(Store::open(&settings), Store::open(&settings)).await;
        let (store, _) = (one.unwrap(), two.unwrap());

        let admin = store.user_for_login("admin@doorman.dev").await.unwrap().unwrap();
        assert_eq!((&*admin.username, &*admin.role, admin.ui_access), ("admin", "admin", true));
        let hash = std::str::from_utf8(admin.password.as_ref().unwrap().hash()).unwrap().to_owned();
        assert!(bcrypt::verify("long-enough-password", &hash).unwrap());
        assert_eq!(store.role("admin").await.unwrap().unwrap().permissions, Permissions::all());
        for group in ["ALL", "admin"] {
            assert!(store.find(Collection::Groups, &[group]).await.unwrap().is_some(), "{group}");
        }
        assert_eq!(collection(&mongo, "users").await.count_documents(doc! {}).await.unwrap(), 1);

        // What someone changed stays, and a later start with other settings changes nothing.
        store.save_user(User { email: "new@example.com".into(), ..User::clone(&admin) }).await.unwrap();
        let later = external(redis.port, mongo.port, &[("DOORMAN_ADMIN_PASSWORD", "another long password")]);
        let store = Store::open(&later).await.unwrap();
        let admin = store.user("admin").await.unwrap().unwrap();
        assert_eq!(admin.email, "new@example.com");
        assert_eq!(admin.password.as_ref().unwrap().hash(), hash.as_bytes());
    }

    #[tokio::test]
    async fn an_existing_database_keeps_what_it_has_and_gets_what_it_lacks() {
        let mongo = Server::mongo();
        let redis = Server::redis(&[]);
        let users = collection(&mongo, "users").await;
        users.insert_one(doc! { "username": "admin", "email": "admin@doorman.dev", "role": "admin", "groups": ["ALL"], "active": true, "extra": 7 }).await.unwrap();
        let hash = bcrypt::hash("Amy's password", 4).unwrap();
        users.insert_one(doc! { "username": "amy", "email": "a@b.c", "role": "user", "password": hash }).await.unwrap();
        let roles = collection(&mongo, "roles").await;
        roles.insert_one(doc! { "role_name": "admin", "manage_users": true, "manage_credits": false }).await.unwrap();

        let store = Store::open(&external(redis.port, mongo.port, &[])).await.unwrap();
        let admin = users.find_one(doc! { "username": "admin" }).await.unwrap().unwrap();
        assert!(matches!(admin.get("password"), Some(mongodb::bson::Bson::Binary(_))), "{admin}");
        assert_eq!(admin.get_i32("extra").unwrap(), 7);
        let role = store.role("admin").await.unwrap().unwrap();
        assert!(role.permissions.contains(Permission::ManageTiers));
        assert!(!role.permissions.contains(Permission::ManageCredits), "someone took it away");
        let amy = store.user_for_login("a@b.c").await.unwrap().unwrap();
        assert!(
            bcrypt::verify("Amy's password", std::str::from_utf8(amy.password.as_ref().unwrap().hash()).unwrap())
                .unwrap()
        );
    }

    #[tokio::test]
    async fn names_and_addresses_are_unique_and_the_address_comes_first() {
        let mongo = Server::mongo();
        let redis = Server::redis(&[]);
        let store = Store::open(&external(redis.port, mongo.port, &[])).await.unwrap();
        store.save_user(User::new("amy", "amy@example.com", "user")).await.unwrap();
        let taken = store.save_user(User::new("bob", "amy@example.com", "user")).await;
        assert!(matches!(taken, Err(StoreError::Taken)), "{taken:?}");
        store.save_user(User::new("amy@example.com", "odd@example.com", "user")).await.unwrap();
        assert_eq!(&*store.user_for_login("amy@example.com").await.unwrap().unwrap().username, "amy");
        assert!(store.delete_user("amy").await.unwrap());
        assert!(!store.delete_user("amy").await.unwrap());
        assert_eq!(&*store.user_for_login("amy@example.com").await.unwrap().unwrap().email, "odd@example.com");
    }

    async fn credits(store: &Store) -> i64 {
        let found = store.find(Collection::UserCredits, &["amy"]).await.unwrap().unwrap();
        let balance = found.get_document(BALANCES).unwrap().get_document("basic").unwrap();
        credits::available(balance).unwrap()
    }

    async fn give(store: &Store, number: i64) {
        let balance = doc! { "tier_name": "t", "available_credits": number, "user_api_key": "own" };
        store.save(Collection::UserCredits, doc! { "username": "amy", BALANCES: { "basic": balance } }).await.unwrap();
    }

    fn charge(store: &Store) -> Charge {
        store.charge(&"amy".into(), &"basic".into())
    }

    #[tokio::test]
    async fn a_balance_is_never_overdrawn_however_many_take_at_once() {
        let (mongo, redis) = (Server::mongo(), Server::redis(&[]));
        let settings = external(redis.port, mongo.port, &[]);
        for store in [Store::open(&settings).await.unwrap(), Store::in_memory()] {
            give(&store, 5).await;
            let mut charges: Vec<_> = (0..20).map(|_| charge(&store)).collect();
            let taken = futures::future::join_all(charges.iter_mut().map(|charge| store.take_credit(charge))).await;
            let taken: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
            assert_eq!((taken.len(), credits(&store).await), (5, 0), "{store:?}");
            assert_eq!(taken[0].user_key.as_deref(), Some("own"));
            for charge in &mut charges {
                store.revoke(charge).await.unwrap();
            }
            assert_eq!(credits(&store).await, 5, "what was taken is given back, and no more");
            for (user, group) in [("bob", "basic"), ("amy", "other"), ("amy", "ba.sic"), ("amy", "$basic"), ("amy", "")]
            {
                let mut charge = store.charge(&user.into(), &group.into());
                assert_eq!(store.take_credit(&mut charge).await.unwrap(), None, "{user} {group}");
                assert!(!charge.is_open());
            }
        }
    }

    #[tokio::test]
    async fn a_charge_is_revoked_once_whatever_is_known_of_it() {
        let (mongo, redis) = (Server::mongo(), Server::redis(&[]));
        let store = Store::open(&external(redis.port, mongo.port, &[])).await.unwrap();
        give(&store, 5).await;
        let mut taken = charge(&store);
        store.take_credit(&mut taken).await.unwrap().unwrap();
        assert_eq!(credits(&store).await, 4);
        for _ in 0..3 {
            taken.begin();
            store.revoke(&mut taken).await.unwrap();
            assert_eq!(credits(&store).await, 5);
        }
        // One whose taking arrives after it was revoked.
        let mut late = charge(&store);
        late.begin();
        store.revoke(&mut late).await.unwrap();
        assert_eq!(store.take_credit(&mut late).await.unwrap(), None);
        assert_eq!(credits(&store).await, 5);
        // A balance that is gone meanwhile doesn't come back.
        let mut lost = charge(&store);
        store.take_credit(&mut lost).await.unwrap().unwrap();
        let other = doc! { "other": { "available_credits": 1 } };
        store.set(Collection::UserCredits, &["amy"], doc! { BALANCES: other.clone() }).await.unwrap();
        store.revoke(&mut lost).await.unwrap();
        let found = store.find(Collection::UserCredits, &["amy"]).await.unwrap().unwrap();
        assert_eq!(found.get_document(BALANCES).unwrap(), &other);
    }

    #[tokio::test]
    async fn marks_of_charges_that_are_over_do_not_pile_up() {
        let (mongo, redis) = (Server::mongo(), Server::redis(&[]));
        let store = Store::open(&external(redis.port, mongo.port, &[])).await.unwrap();
        give(&store, 50).await;
        let old = mongodb::bson::oid::ObjectId::from_parts(1_600_000_000, [1; 5], [2; 3]);
        store.set(Collection::UserCredits, &["amy"], doc! { OPEN_CHARGES: { "gone-0": old } }).await.unwrap();
        for _ in 0..20 {
            store.take_credit(&mut charge(&store)).await.unwrap().unwrap();
        }
        let found = store.find(Collection::UserCredits, &["amy"]).await.unwrap().unwrap();
        let marks = found.get_document(OPEN_CHARGES).unwrap();
        assert!(marks.len() == 1 && !marks.contains_key("gone-0"), "{marks}");
    }

    #[tokio::test]
    async fn while_the_database_dies_and_comes_back_no_credit_is_given_twice_or_lost() {
        let (mut mongo, redis) = (Server::mongo(), Server::redis(&[]));
        let settings = external(redis.port, mongo.port, &[]);
        let stores = [Store::open(&settings).await.unwrap(), Store::open(&settings).await.unwrap()];
        give(&stores[0], 300).await;
        let given = std::sync::atomic::AtomicU32::new(0);
        let spend = async |store: &Store| {
            for _ in 0..200 {
                let mut charge = charge(store);
                match store.take_credit(&mut charge).await {
                    Ok(Some(_)) => drop(given.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                    Ok(None) => assert!(!charge.is_open()),
                    Err(_) => while store.revoke(&mut charge).await.is_err() {},
                }
            }
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            mongo.restart();
        };
        futures::join!(spend(&stores[0]), spend(&stores[1]), kill);
        let (given, left) = (i64::from(given.into_inner()), credits(&stores[0]).await);
        assert_eq!(given + left, 300, "{given} given, {left} left");
    }

    #[tokio::test]
    async fn a_start_whose_administrator_has_anothers_address_says_so() {
        let mongo = Server::mongo();
        let redis = Server::redis(&[]);
        let users = collection(&mongo, "users").await;
        users.insert_one(doc! { "username": "amy", "email": "admin@doorman.dev", "role": "user" }).await.unwrap();
        let error = Store::open(&external(redis.port, mongo.port, &[])).await.unwrap_err();
        assert!(matches!(error, ConnectError::AdminEmailTaken), "{error}");
    }
}

#[tokio::test]
async fn a_start_without_mongodb_says_what_is_missing() {
    let redis = Server::redis(&[]);
    let settings = external(redis.port, NOBODY, &[("MONGO_DB_USER", "doorman"), ("MONGO_DB_PASSWORD", "open sesame")]);
    let error = Store::open(&settings).await.unwrap_err().to_string();
    assert!(error.starts_with("Cannot connect to MongoDB at 127.0.0.1:1 after 3 tries"), "{error}");
    assert!(!error.contains("sesame"), "{error}");
}
