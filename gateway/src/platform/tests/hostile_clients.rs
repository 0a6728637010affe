//! What signed-in users and other sites might try, each through the whole platform router.

use futures::FutureExt;
use jsonwebtoken::{EncodingKey, Header, encode};

use super::*;
use crate::store::{Collection, now};

const STRONG: &str = "Correct-Horse-9-Battery";

/// A token of this user that says it was issued so long ago; `None`: it doesn't say when.
fn token_from(username: &str, seconds_ago: Option<u64>) -> String {
    let mut claims = json!({ "sub": username, "role": "user", "exp": now() + 600, "jti": "the-id", "accesses": {} });
    if let Some(seconds) = seconds_ago {
        claims["iat"] = (now() - seconds).into();
    }
    let key = EncodingKey::from_secret(b"0123456789abcdef0123456789abcdef");
    encode(&Header::default(), &claims, &key).unwrap()
}

fn bea() -> Value {
    json!({ "username": "bea", "email": "bea@example.com", "password": STRONG, "role": "user" })
}

#[tokio::test]
async fn a_token_is_worth_nothing_to_the_next_user_of_its_name() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.add(User::new("bea", "bea@example.com", "user")).await;
    let (earlier, silent) = (token_from("bea", Some(30)), token_from("bea", None));
    for token in [&earlier, &silent] {
        assert_eq!(fixture.status_with(token).await, 200, "a user without a mark takes both");
    }
    assert_eq!(fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await.status, 200);
    assert_eq!(fixture.send("POST", "/platform/user", &admin, bea()).await.status, 201);
    for token in [&earlier, &silent] {
        assert_eq!(fixture.status_with(token).await, 401);
    }
    assert_eq!(
        fixture.status_with(&token_from("bea", Some(0))).await,
        200,
        "others with the key may issue some at once"
    );
    let own = fixture.sign_in("bea", STRONG).send().await.cookie("access_token_cookie");
    let shown = fixture.send("GET", "/platform/user/me", &own, Value::Null).await;
    assert_eq!(shown.status, 200);
    assert!(!shown.text.contains("tokens_from"), "{shown:?}");

    // By registration too.
    assert_eq!(fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await.status, 200);
    let body = json!({ "email": "bea@other.example", "password": STRONG }).to_string();
    assert_eq!(fixture.call("POST", "/platform/authorization/register").body(body).send().await.status, 201);
    assert_eq!(fixture.status_with(&earlier).await, 401);
}

#[tokio::test]
async fn a_password_that_others_change_ends_earlier_tokens_and_ones_own_does_not() {
    for (path, body, ends) in [
        ("/platform/user/bea/update-password", json!({ "new_password": STRONG }), true),
        ("/platform/user/bea", json!({ "password": STRONG }), true),
        ("/platform/user/bea", json!({ "force_password_reset": true }), true),
        ("/platform/user/bea", json!({ "ui_access": true }), false),
    ] {
        let fixture = Fixture::usual().await;
        let admin = fixture.token().await;
        fixture.add(User::new("bea", "bea@example.com", "user")).await;
        let earlier = [token_from("bea", Some(30)), token_from("bea", Some(0))];
        assert_eq!(fixture.send("PUT", path, &admin, body.clone()).await.status, 200);
        for token in earlier {
            assert_eq!(fixture.status_with(&token).await, if ends { 401 } else { 200 }, "{path} {body}");
        }
        if body["force_password_reset"].is_null() && ends {
            let again = fixture.sign_in("bea", STRONG).send().await.cookie("access_token_cookie");
            assert_eq!(fixture.status_with(&again).await, 200, "a new session counts at once");
            // Within the same second, too.
            assert_eq!(fixture.send("PUT", path, &admin, body.clone()).await.status, 200);
            assert_eq!(fixture.status_with(&again).await, 401, "{path} {body}");
        }
    }
    let fixture = Fixture::usual().await;
    fixture.add(User::new("bea", "bea@example.com", "user")).await;
    let own = token_from("bea", Some(30));
    let changed = fixture.send("PUT", "/platform/user/bea/update-password", &own, json!({ "new_password": STRONG }));
    assert_eq!(changed.await.status, 200);
    assert_eq!(fixture.status_with(&own).await, 200);
}

#[tokio::test]
async fn nobody_takes_the_name_of_another_for_an_address() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let own = fixture.with_role("mallory", &[]).await;
    let taken = json!({ "error_code": "USR001", "error_message": "Email already exists" });
    let update = fixture.send("PUT", "/platform/user/mallory", &own, json!({ "email": "admin" })).await;
    update.is(400, taken.clone());
    assert_eq!(fixture.sign_in("admin", PASSWORD).send().await.status, 200, "the administrator still gets in by name");
    let mut named_like_an_address = bea();
    named_like_an_address["username"] = "mallory@example.com".into();
    fixture.send("POST", "/platform/user", &admin, named_like_an_address).await.is(400, taken.clone());
    let mut addressed_like_a_name = bea();
    addressed_like_a_name["email"] = "mallory".into();
    fixture.send("POST", "/platform/user", &admin, addressed_like_a_name).await.is(400, taken);
    // One's own name is nobody else's.
    let update = fixture.send("PUT", "/platform/user/mallory", &own, json!({ "email": "mallory" })).await;
    assert_eq!(update.status, 200);
}

#[tokio::test]
async fn what_a_deleted_user_had_is_not_left_to_the_next_of_the_name() {
    use mongodb::bson::doc;
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    let left = [
        (Collection::Subscriptions, doc! { "username": "bea", "apis": ["orders/v1"] }),
        (Collection::UserCredits, doc! { "username": "bea", "users_credits": {} }),
        (Collection::TierAssignments, doc! { "user_id": "bea", "tier_id": "gold" }),
        (Collection::VaultEntries, doc! { "username": "bea", "key_name": "one" }),
        (Collection::VaultEntries, doc! { "username": "bea", "key_name": "two" }),
    ];
    fixture.add(User::new("bea", "bea@example.com", "user")).await;
    let store = fixture.identity.store();
    for (collection, document) in left.clone() {
        store.insert(collection, document).await.unwrap();
    }
    store.insert(Collection::VaultEntries, doc! { "username": "amy", "key_name": "one" }).await.unwrap();
    assert_eq!(fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await.status, 200);
    for (collection, _) in left {
        let found = store.all(collection).await.unwrap();
        assert!(
            found.iter().all(|document| document.get_str("username").is_ok_and(|name| name == "amy")),
            "{collection:?}: {found:?}"
        );
    }
    assert_eq!(store.all(Collection::VaultEntries).await.unwrap().len(), 1);

    // What a deletion that broke off has left goes when it is repeated.
    store.insert(Collection::VaultEntries, doc! { "username": "bea", "key_name": "one" }).await.unwrap();
    assert_eq!(fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await.status, 404);
    assert_eq!(store.all(Collection::VaultEntries).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_no_store_can_keep_is_refused_and_changes_nothing() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.add(User::new("bea", "bea@example.com", "user")).await;
    let huge = json!({ "custom_attributes": { "n": u64::MAX }, "ui_access": true });
    let seen = fixture.send("PUT", "/platform/user/bea", &admin, huge.clone()).await;
    assert_eq!((seen.status, &seen.json()["error_code"]), (422, &json!("VAL001")));
    assert!(!fixture.identity.store().user("bea").await.unwrap().unwrap().ui_access);
    let mut new = bea();
    new["username"] = "ben".into();
    new["email"] = "ben@example.com".into();
    new["custom_attributes"] = huge["custom_attributes"].clone();
    assert_eq!(fixture.send("POST", "/platform/user", &admin, new).await.status, 422);
    assert!(fixture.identity.store().user("ben").await.unwrap().is_none());
}

#[tokio::test]
async fn what_has_begun_is_done_though_its_client_goes() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.add(User::new("bea", "bea@example.com", "user")).await;
    let change = fixture.send("PUT", "/platform/user/bea/update-password", &admin, json!({ "new_password": STRONG }));
    assert!(change.now_or_never().is_none(), "it is done already");
    let done = async {
        while fixture.identity.store().user("bea").await.unwrap().unwrap().password.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("it was given up");
}

#[tokio::test]
async fn other_sites_can_not_lock_users_out() {
    let fixture = Fixture::with(&[("HTTPS_ENABLED", "true")]).await;
    let token = fixture.token().await;
    fixture.add(amy()).await;
    for action in ["revoke", "unrevoke", "disable", "enable"] {
        let path = format!("/platform/authorization/admin/{action}/amy");
        let call = || fixture.call("POST", &path).over(Scheme::Https);
        let by_cookie = call().header("cookie", &format!("access_token_cookie={token}; csrf_token=known")).send().await;
        by_cookie.is(401, json!({ "detail": "Invalid CSRF token" }));
        let repeated = call().header("cookie", &format!("access_token_cookie={token}; csrf_token=known"));
        assert_eq!(repeated.header("x-csrf-token", "known").send().await.status, 200, "{action}");
    }
}

#[tokio::test]
async fn no_cache_keeps_what_one_user_was_told() {
    let fixture = Fixture::usual().await;
    let token = fixture.token().await;
    for path in ["/platform/user/me", "/platform/authorization/status", "/platform/nowhere"] {
        let seen = fixture.send("GET", path, &token, Value::Null).await;
        assert_eq!(seen.header("cache-control"), "no-store", "{path}");
    }
    assert_eq!(fixture.sign_in("admin", PASSWORD).send().await.header("cache-control"), "no-store");
}

#[tokio::test]
async fn attributes_that_can_not_be_stored_are_no_failure_of_the_server() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    for attributes in [json!({ "a\u{0}b": 1 }), json!({ "a": { "b\u{0}": 1 } }), json!({ "$where": "1", "a.b": 2 })] {
        let mut user = bea();
        user["custom_attributes"] = attributes.clone();
        let created = fixture.send("POST", "/platform/user", &admin, user).await;
        assert!(created.status < 500, "{attributes}: {created:?}");
        let update = json!({ "custom_attributes": attributes, "active": false });
        let updated = fixture.send("PUT", "/platform/user/bea", &admin, update).await;
        assert!(updated.status < 500, "{attributes}: {updated:?}");
        if updated.status == 200 {
            let read = fixture.send("GET", "/platform/user/bea", &admin, Value::Null).await.json();
            assert_eq!((&read["custom_attributes"], &read["active"]), (&attributes, &json!(false)));
        }
        fixture.send("DELETE", "/platform/user/bea", &admin, Value::Null).await;
    }
}

#[tokio::test]
async fn a_list_is_not_taken_for_an_object() {
    let fixture = Fixture::usual().await;
    let admin = fixture.token().await;
    fixture.add(User::new("bea", "bea@example.com", "user")).await;
    for (method, path, body) in [
        ("PUT", "/platform/user/bea/update-password", json!([STRONG])),
        ("PUT", "/platform/security/settings", json!([true, true])),
        ("POST", "/platform/memory/dump", json!([])),
    ] {
        assert_eq!(fixture.send(method, path, &admin, body).await.status, 422, "{method} {path}");
    }
}
