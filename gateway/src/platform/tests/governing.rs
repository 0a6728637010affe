//! Registration, what administrators do about sessions, and what protects passwords (platform API 4).

use super::*;

const STRONG: &str = "Correct-Horse-9-Battery";

async fn register(fixture: &Fixture, email: &str, password: &str) -> Seen {
    let body = json!({ "email": email, "password": password }).to_string();
    fixture.call("POST", "/platform/authorization/register").body(body).send().await
}

async fn governor(fixture: &Fixture) -> String {
    fixture.with_role("governor", &[Permission::ManageAuth]).await
}

#[tokio::test]
async fn nobody_registers_where_that_is_switched_off() {
    let fixture = Fixture::with(&[("REGISTRATION_ENABLED", "false"), ("REGISTER_IP_RATE_LIMIT", "1")]).await;
    for _ in 0..2 {
        let off = refusal("AUTH010", "Registration is switched off; ask an administrator for an account");
        register(&fixture, "carla@example.com", STRONG).await.is(403, off);
    }
    assert!(fixture.identity.store().user("carla").await.unwrap().is_none());
}

#[tokio::test]
async fn who_registers_is_a_user_without_rights_and_not_signed_in() {
    let fixture = Fixture::usual().await;
    let seen = register(&fixture, "carla@example.com", STRONG).await;
    seen.is(201, json!({ "message": "User created successfully" }));
    assert!(seen.cookies().is_empty());
    let user = fixture.identity.store().user("carla").await.unwrap().unwrap();
    assert_eq!((&*user.role, user.active, user.groups.len(), user.ui_access), ("user", true, 0, false));
    let token = fixture.sign_in("carla@example.com", STRONG).send().await.cookie("access_token_cookie");
    assert_eq!(fixture.send("GET", "/platform/user/me", &token, Value::Null).await.json()["username"], "carla");

    let name = refusal("USR001", "Username already exists");
    register(&fixture, "carla@other.example", STRONG).await.is(400, name.clone());
    register(&fixture, "admin@other.example", STRONG).await.is(400, name);
    fixture.add(User::new("dora", "dorothy@example.com", "user")).await;
    register(&fixture, "dorothy@example.com", STRONG).await.is(400, refusal("USR001", "Email already exists"));
}

#[tokio::test]
async fn a_registration_that_will_not_do_is_told_why() {
    let fixture = Fixture::with(&[("REGISTER_IP_RATE_LIMIT", "100")]).await;
    for (email, password, code) in [
        ("", STRONG, "AUTH001"),
        ("carla@example.com", "", "AUTH001"),
        ("carla", STRONG, "AUTH006"),
        ("ca@example.com", STRONG, "AUTH006"),
        ("carla@", STRONG, "AUTH006"),
        ("@example.com", STRONG, "AUTH006"),
        ("car\u{0}la@example.com", STRONG, "AUTH006"),
        (&format!("{}@example.com", "c".repeat(51)), STRONG, "AUTH006"),
        ("carla@example.com", "Too-short-9", "USR005"),
        ("carla@example.com", "correct-horse-9-battery", "USR005"),
        ("carla@example.com", &STRONG.repeat(3), "USR005"),
    ] {
        let seen = register(&fixture, email, password).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (400, &json!(code)), "{email} {password}");
    }
    let seen = fixture.call("POST", "/platform/authorization/register").body("{").send().await;
    seen.is(400, refusal("AUTH004", "Invalid JSON payload"));
    assert!(fixture.identity.store().user("carla").await.unwrap().is_none());
}

#[tokio::test]
async fn registrations_are_limited_by_address_and_not_by_sign_ins() {
    let limits = [("REGISTER_IP_RATE_LIMIT", "2"), ("REGISTER_IP_RATE_WINDOW", "3600"), ("LOGIN_IP_RATE_LIMIT", "2")];
    let fixture = Fixture::with(&limits).await;
    for _ in 0..2 {
        assert_eq!(fixture.sign_in("admin", PASSWORD).send().await.status, 200);
    }
    for name in ["carla", "dora"] {
        assert_eq!(register(&fixture, &format!("{name}@example.com"), STRONG).await.status, 201);
    }
    let seen = register(&fixture, "emma@example.com", STRONG).await;
    assert_eq!((seen.status, &seen.json()["error_code"]), (429, &json!("IP_RATE_LIMIT")));
    assert!((1..=3600).contains(&seen.header("retry-after").parse::<u64>().unwrap()));
    let unlimited = Fixture::with(&[("REGISTER_IP_RATE_LIMIT", "1"), ("LOGIN_IP_RATE_DISABLED", "true")]).await;
    for name in ["carla", "dora"] {
        assert_eq!(register(&unlimited, &format!("{name}@example.com"), STRONG).await.status, 201);
    }
}

#[tokio::test]
async fn revoking_and_disabling_act_at_once_and_are_taken_back_one_by_one() {
    let fixture = Fixture::usual().await;
    let governor = governor(&fixture).await;
    fixture.add(amy()).await;
    let signed_in = async || fixture.sign_in("amy", "Amy's password").send().await.cookie("access_token_cookie");
    let act = async |what: &str| {
        let path = format!("/platform/authorization/admin/{what}/amy");
        fixture.send("POST", &path, &governor, Value::Null).await
    };
    let standing = async |active: bool, revoked: bool| {
        let path = "/platform/authorization/admin/status/amy";
        let seen = fixture.send("GET", path, &governor, Value::Null).await;
        seen.is(200, json!({ "active": active, "revoked": revoked }));
    };
    let token = signed_in().await;
    standing(true, false).await;

    act("revoke").await.is(200, json!({ "message": "All tokens revoked for amy" }));
    standing(true, true).await;
    let seen = fixture.send("GET", "/platform/user/me", &token, Value::Null).await;
    seen.is(401, refusal("GTW998", "Unauthorized"));
    assert_eq!(fixture.status_with(&signed_in().await).await, 401, "later tokens too");
    act("unrevoke").await.is(200, json!({ "message": "Token revocation cleared for amy" }));
    assert_eq!(fixture.status_with(&token).await, 200);

    act("disable").await.is(200, json!({ "message": "User amy disabled and tokens revoked" }));
    standing(false, true).await;
    assert_eq!(fixture.status_with(&token).await, 401);
    assert_eq!(fixture.sign_in("amy", "Amy's password").send().await.json()["error_code"], "AUTH007");
    act("enable").await.is(200, json!({ "message": "User amy enabled" }));
    standing(true, true).await;
    assert_eq!(fixture.status_with(&token).await, 401, "enabling takes no revocation back");
    act("unrevoke").await;
    assert_eq!(fixture.status_with(&token).await, 200);
}

#[tokio::test]
async fn sessions_of_administrators_are_out_of_reach_for_others() {
    let fixture = Fixture::usual().await;
    let (admin, governor) = (fixture.token().await, governor(&fixture).await);
    let plain = fixture.with_role("plain", &[]).await;
    let hidden = json!({ "error_message": "User not found" });
    let forbidden = refusal("AUTH900", "You do not have permission to manage auth");
    for (method, what) in
        [("POST", "revoke"), ("POST", "unrevoke"), ("POST", "disable"), ("POST", "enable"), ("GET", "status")]
    {
        let path = format!("/platform/authorization/admin/{what}/admin");
        fixture.send(method, &path, &plain, Value::Null).await.is(403, forbidden.clone());
        fixture.send(method, &path, &governor, Value::Null).await.is(404, hidden.clone());
        let unknown = format!("/platform/authorization/admin/{what}/nobody");
        let seen = fixture.send(method, &unknown, &governor, Value::Null).await;
        assert_eq!(seen.status, if what == "status" { 404 } else { 200 }, "{what}: {seen:?}");
    }
    let body = json!({ "username": "admin" });
    fixture.send("POST", "/platform/authorization/invalidate", &governor, body).await.is(404, hidden);
    assert_eq!(fixture.status_with(&admin).await, 200);
    let seen = fixture.send("GET", "/platform/authorization/admin/status/admin", &admin, Value::Null).await;
    seen.is(200, json!({ "active": true, "revoked": false }));
}

#[tokio::test]
async fn failed_sign_ins_with_one_name_are_limited_from_wherever_they_come() {
    let limits = [("LOGIN_ACCOUNT_RATE_LIMIT", "3"), ("LOGIN_ACCOUNT_RATE_WINDOW", "3600")];
    let fixture = Fixture::with(&limits).await;
    fixture.add(amy()).await;
    let attempt = async |name: &str, password: &str, last: usize| {
        fixture.sign_in(name, password).from(&format!("192.0.2.{last}")).send().await
    };
    for n in 0..5 {
        assert_eq!(attempt("amy", "Amy's password", n).await.status, 200, "what succeeds is not counted");
    }
    // The same for a name that is nobody's: nothing tells the two apart.
    for name in ["amy", "nobody"] {
        for n in 0..3 {
            assert_eq!(attempt(name, "wrong", n).await.json()["error_code"], "AUTH002", "{name} {n}");
        }
        for password in ["wrong", "Amy's password"] {
            let seen = attempt(name, password, 9).await;
            let wait = seen.header("retry-after").to_owned();
            let message = format!("Too many failed sign-ins. Please wait {wait} seconds before trying again.");
            seen.is(429, refusal("AUTH009", &message));
            assert!((1..=3600).contains(&wait.parse::<u64>().unwrap()));
        }
    }
    assert_eq!(attempt("admin", PASSWORD, 9).await.status, 200, "others are not held up");
    assert_eq!(attempt("amy@example.com", "Amy's password", 9).await.status, 200);
}

#[tokio::test]
async fn many_guesses_at_once_are_no_way_around_the_limit() {
    let limits = [("LOGIN_ACCOUNT_RATE_LIMIT", "3"), ("LOGIN_ACCOUNT_RATE_WINDOW", "3600")];
    let fixture = Fixture::with(&limits).await;
    let guesses = (0..20).map(|_| fixture.sign_in("admin", "wrong").send());
    let seen = futures::future::join_all(guesses).await;
    assert_eq!(seen.iter().filter(|seen| seen.status == 400).count(), 3);
    assert_eq!(seen.iter().filter(|seen| seen.status == 429).count(), 17);
}

#[tokio::test]
async fn failed_sign_ins_are_counted_across_processes() {
    let redis = Server::redis(&[]);
    let limits =
        [("LOGIN_ACCOUNT_RATE_LIMIT", "3"), ("LOGIN_ACCOUNT_RATE_WINDOW", "3600"), ("LOGIN_IP_RATE_DISABLED", "true")];
    let settings = external(redis.port, 1, &limits);
    let process = async || Fixture::over(settings.clone(), with_redis(&settings).await);
    let (one, two) = (process().await, process().await);
    for fixture in [&one, &two, &one] {
        assert_eq!(fixture.sign_in("nobody", "wrong").send().await.status, 400);
    }
    assert_eq!(two.sign_in("nobody", "wrong").send().await.status, 429);
    one.add(amy()).await;
    for _ in 0..5 {
        assert_eq!(one.sign_in("amy", "Amy's password").send().await.status, 200);
    }
    for _ in 0..3 {
        assert_eq!(one.sign_in("amy", "wrong").send().await.status, 400, "those that succeeded left nothing");
    }
    assert_eq!(one.sign_in("amy", "wrong").send().await.status, 429);
}

#[tokio::test]
async fn a_sign_in_renews_a_hash_of_too_little_work() {
    let fixture = Fixture::usual().await;
    let cheap = bcrypt::hash_bytes("Amy's password", 4).unwrap();
    fixture.add(User { password: Some(Password::from_hash(&cheap)), ..amy() }).await;
    let stored = async || {
        let user = fixture.identity.store().user("amy").await.unwrap().unwrap();
        user.password.as_ref().unwrap().hash().to_vec()
    };
    assert_eq!(fixture.sign_in("amy", "wrong").send().await.status, 400);
    assert_eq!(stored().await, cheap, "a wrong password changes nothing");
    assert_eq!(fixture.sign_in("amy", "Amy's password").send().await.status, 200);
    let renewed = stored().await;
    assert!(renewed != cheap && renewed.starts_with(b"$2b$05$"), "{}", String::from_utf8_lossy(&renewed));
    assert_eq!(fixture.sign_in("amy", "Amy's password").send().await.status, 200);
    assert_eq!(stored().await, renewed, "once is enough");
}

#[tokio::test]
async fn who_must_change_the_password_can_not_stay_by_refreshing() {
    let fixture = Fixture::usual().await;
    fixture.add(amy()).await;
    let token = fixture.sign_in("amy", "Amy's password").send().await.cookie("access_token_cookie");
    fixture.add(User { force_password_reset: true, ..amy() }).await;
    let seen = fixture.send("POST", "/platform/authorization/refresh", &token, Value::Null).await;
    assert_eq!((seen.status, &seen.json()["error_code"]), (403, &json!("AUTH008")));
}
