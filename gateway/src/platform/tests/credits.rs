//! Credits, as the reference has them (platform API 13).

use mongodb::bson::doc;

use super::*;
use crate::store::Collection;

const KEY: (&str, &str) = ("TOKEN_ENCRYPTION_KEY", "a key for stored keys, of a decent length");

fn definition(group: &str) -> Value {
    json!({ "api_credit_group": group, "api_key": "sk-upstream", "api_key_header": "x-api-key",
        "credit_tiers": [{ "tier_name": "basic", "credits": 100, "input_limit": 10, "output_limit": 20,
            "reset_frequency": "monthly" }] })
}

fn masked(group: &str) -> Value {
    json!({ "api_credit_group": group, "api_key_header": "x-api-key", "api_key_present": true,
        "credit_tiers": definition(group)["credit_tiers"] })
}

fn balances(username: &str, users_credits: Value) -> Value {
    json!({ "username": username, "users_credits": users_credits })
}

#[tokio::test]
async fn a_definition_is_added_read_changed_and_deleted_and_its_keys_never_told() {
    for (fixture, _servers) in in_either_store(&[KEY]).await {
        let token = fixture.with_role("banker", &[Permission::ManageCredits]).await;
        let mut new = definition("ai");
        new["api_key_new"] = json!("sk-next");
        new["api_key_rotation_expires"] = json!("2027-01-01T00:00:00");
        let created = fixture.send("POST", "/platform/credit", &token, new).await;
        created.is(201, json!({ "message": "Credit definition created successfully" }));
        let twice = fixture.send("POST", "/platform/credit/", &token, definition("ai")).await;
        twice.is(400, refusal("CRD001", "Credit group already exists"));
        fixture.send("GET", "/platform/credit/defs/ai", &token, Value::Null).await.is(200, masked("ai"));
        let page = json!({ "items": [masked("ai")], "page": 1, "page_size": 50, "has_next": false, "total": 1 });
        fixture.send("GET", "/platform/credit/defs/", &token, Value::Null).await.is(200, page);

        let stored = fixture.identity.store().find(Collection::CreditDefs, &["ai"]).await.unwrap().unwrap();
        assert!(!format!("{stored:?}").contains("sk-"), "{stored:?}");
        let sealer = crate::crypt::Sealer::new(Some(KEY.1), []).unwrap();
        for (member, key) in [("api_key", "sk-upstream"), ("api_key_new", "sk-next")] {
            let sealed = stored.get_str(member).unwrap();
            assert!(sealed.starts_with("enc:"), "{sealed}");
            assert_eq!(sealer.open(sealed).unwrap(), key);
        }
        let expires = stored.get_datetime("api_key_rotation_expires").unwrap();
        assert_eq!(expires.try_to_rfc3339_string().unwrap(), "2027-01-01T00:00:00Z");

        let mut update = definition("ai");
        update["api_key_header"] = json!("Authorization");
        update["api_key_new"] = Value::Null;
        let updated = fixture.send("PUT", "/platform/credit/ai", &token, update.clone()).await;
        updated.is(200, json!({ "message": "Credit definition updated successfully" }));
        assert_eq!(fixture.send("PUT", "/platform/credit/ai/", &token, update).await.status, 200, "the same again");
        let stored = fixture.identity.store().find(Collection::CreditDefs, &["ai"]).await.unwrap().unwrap();
        assert_eq!(sealer.open(stored.get_str("api_key_new").unwrap()).unwrap(), "sk-next", "null changes nothing");
        assert_eq!(stored.get_str("api_key_header").unwrap(), "Authorization");

        let deleted = fixture.send("DELETE", "/platform/credit/ai", &token, Value::Null).await;
        deleted.is(200, json!({ "message": "Credit definition deleted successfully" }));
        let missing = "Credit definition does not exist for the requested group";
        fixture.send("DELETE", "/platform/credit/ai", &token, Value::Null).await.is(400, refusal("CRD007", missing));
        let seen = fixture.send("PUT", "/platform/credit/ai", &token, definition("ai")).await;
        seen.is(400, refusal("CRD004", missing));
        let seen = fixture.send("GET", "/platform/credit/defs/ai", &token, Value::Null).await;
        seen.is(404, refusal("CRD021", "Credit definition not found"));
    }
}

#[tokio::test]
async fn definitions_that_could_not_be_used_are_refused() {
    let fixture = Fixture::with(&[KEY]).await;
    let token = fixture.with_role("banker", &[Permission::ManageCredits]).await;
    let with = |member: &str, value: Value| {
        let mut body = definition("ai");
        body[member] = value;
        body
    };
    for (body, code, part) in [
        (with("api_key", json!("")), "CRD010", "API key and header are required"),
        (with("api_key_header", json!("")), "CRD010", "API key and header are required"),
        (with("api_key_header", json!("x api key")), "CRD010", "not the name of a header"),
        (with("api_key_header", json!("Host")), "CRD010", "can't be Host"),
        (with("api_key_header", json!("Content_Length")), "CRD010", "can't be Content_Length"),
        (with("api_key_header", json!("transfer-encoding")), "CRD010", "framing"),
        (with("api_key", json!("enc:gAAAA")), "CRD010", "encrypted one"),
        (with("api_key_new", json!("enc:gAAAA")), "CRD010", "encrypted one"),
        (with("api_key", json!("sk\r\nhost: x")), "CRD010", "line breaks"),
        (with("api_credit_group", json!("a.b")), "CRD009", "dots"),
        (with("api_credit_group", json!("$a")), "CRD009", "begin with $"),
        (with("api_credit_group", json!("defs")), "CRD009", "a route has that name"),
    ] {
        let seen = fixture.send("POST", "/platform/credit", &token, body.clone()).await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (400, &json!(code)), "{body} {seen:?}");
        assert!(seen.json()["error_message"].as_str().unwrap().contains(part), "{seen:?}");
        assert!(!seen.text.contains("sk"), "{seen:?}");
    }
    for body in [
        with("credit_tiers", json!([])),
        with("credit_tiers", json!([{ "tier_name": "basic" }])),
        with("api_key_rotation_expires", json!("soon")),
        with("api_credit_group", json!("a\u{0}")),
        with("api_key", Value::Null),
        json!([definition("ai")]),
    ] {
        let seen = fixture.send("POST", "/platform/credit", &token, body).await;
        seen.is(422, refusal("VAL001", "Validation Error"));
    }
    assert_eq!(fixture.identity.store().all(Collection::CreditDefs).await.unwrap().len(), 0);
    fixture.send("POST", "/platform/credit", &token, definition("ai")).await;
    let seen = fixture.send("PUT", "/platform/credit/ai", &token, definition("other")).await;
    seen.is(400, refusal("CRD003", "Credit group name cannot be updated"));
    let seen = fixture.send("PUT", "/platform/credit/ai", &token, with("api_key_header", json!("host"))).await;
    assert_eq!(seen.json()["error_code"], "CRD010");
}

#[tokio::test]
async fn credits_are_saved_for_the_user_of_the_path_and_replace_all_there_were() {
    for (fixture, _servers) in in_either_store(&[KEY]).await {
        let token = fixture.with_role("banker", &[Permission::ManageCredits]).await;
        let own = fixture.with_role("plain", &[]).await;
        let sent = balances(
            "plain",
            json!({
                "ai": { "tier_name": "basic", "available_credits": 5, "user_api_key": "sk-own",
                    "reset_date": "2027-01-01" },
                "maps": { "tier_name": "basic", "available_credits": "7" },
            }),
        );
        let saved = fixture.send("POST", "/platform/credit/plain", &token, sent).await;
        saved.is(200, json!({ "message": "Credits saved successfully" }));
        let expected = balances(
            "plain",
            json!({
                "ai": { "tier_name": "basic", "available_credits": 5, "user_api_key": "sk-own",
                    "reset_date": "2027-01-01" },
                "maps": { "tier_name": "basic", "available_credits": 7, "user_api_key": null, "reset_date": null },
            }),
        );
        for reader in [&token, &own] {
            fixture.send("GET", "/platform/credit/plain/", reader, Value::Null).await.is(200, expected.clone());
        }
        let none = fixture.send("GET", "/platform/credit/banker", &token, Value::Null).await;
        none.is(404, refusal("CRD017", "User credits not found"));
        let stored = fixture.identity.store().find(Collection::UserCredits, &["plain"]).await.unwrap().unwrap();
        assert!(format!("{stored:?}").contains("enc:") && !format!("{stored:?}").contains("sk-own"), "{stored:?}");

        let fewer = balances("plain", json!({ "maps": { "tier_name": "basic", "available_credits": 1 } }));
        assert_eq!(fixture.send("POST", "/platform/credit/plain", &token, fewer).await.status, 200);
        let read = fixture.send("GET", "/platform/credit/plain", &token, Value::Null).await.json();
        assert_eq!(read["users_credits"].as_object().unwrap().keys().collect::<Vec<_>>(), ["maps"]);
        assert_eq!(
            fixture.send("POST", "/platform/credit/plain", &token, balances("plain", json!({}))).await.status,
            200
        );
        let read = fixture.send("GET", "/platform/credit/plain", &token, Value::Null).await;
        read.is(200, balances("plain", json!({})));
    }
}

#[tokio::test]
async fn credits_that_can_not_be_kept_are_refused() {
    let fixture = Fixture::with(&[KEY]).await;
    let token = fixture.with_role("banker", &[Permission::ManageCredits]).await;
    let balance = json!({ "tier_name": "basic", "available_credits": 1 });
    let seen = fixture.send("POST", "/platform/credit/banker", &token, balances("other", json!({}))).await;
    seen.is(400, refusal("CRD014", "Username in body does not match path"));
    let seen = fixture.send("POST", "/platform/credit/nobody", &token, balances("nobody", json!({}))).await;
    assert_eq!(seen.status, 200, "who comes later finds them");
    for group in ["", "a.b", "$a", "a\u{0}", &"g".repeat(51)] {
        let seen = fixture
            .send("POST", "/platform/credit/banker", &token, balances("banker", json!({ group: balance })))
            .await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (400, &json!("CRD009")), "{group:?} {seen:?}");
    }
    let sealed = json!({ "ai": { "tier_name": "basic", "available_credits": 1, "user_api_key": "enc:x" } });
    let seen = fixture.send("POST", "/platform/credit/banker", &token, balances("banker", sealed)).await;
    assert_eq!((seen.status, &seen.json()["error_code"]), (400, &json!("CRD010")));
    for users_credits in [
        json!({ "ai": { "tier_name": "basic", "available_credits": -1 } }),
        json!({ "ai": { "available_credits": 1 } }),
        json!({ "ai": { "tier_name": "basic" } }),
        json!({ "ai": 5 }),
        json!([]),
        Value::Null,
    ] {
        let seen = fixture.send("POST", "/platform/credit/banker", &token, balances("banker", users_credits)).await;
        seen.is(422, refusal("VAL001", "Validation Error"));
    }
    let listed = fixture.send("POST", "/platform/credit/banker", &token, json!([balances("banker", json!({}))])).await;
    assert_eq!(listed.status, 422);
    let kept = fixture.identity.store().all(Collection::UserCredits).await.unwrap();
    assert_eq!(kept.iter().map(|kept| kept.get_str("username").unwrap()).collect::<Vec<_>>(), ["nobody"]);
}

#[tokio::test]
async fn what_users_have_is_listed_and_found_by_user_and_group_in_any_case() {
    for (fixture, _servers) in in_either_store(&[KEY]).await {
        let token = fixture.with_role("banker", &[Permission::ManageCredits]).await;
        for (user, group) in [("amy", "Ai.x"), ("bob", "maps"), ("cya", "maps")] {
            let group = group.replace('.', "-");
            let credits = doc! { group: { "tier_name": "basic", "available_credits": 3 } };
            let document = doc! { "username": user, "users_credits": credits };
            fixture.identity.store().insert(Collection::UserCredits, document).await.unwrap();
        }
        for (query, found, total) in [
            ("", vec!["amy", "bob", "cya"], 3),
            ("?page_size=2", vec!["amy", "bob"], 3),
            ("?search=&page=2&page_size=2", vec!["cya"], 3),
            ("?search=MAPS&page_size=1", vec!["bob"], 2),
            ("?search=ai-X", vec!["amy"], 1),
            ("?search=ya", vec!["cya"], 1),
            ("?search=.*", vec![], 0),
            ("?search=%5B", vec![], 0),
        ] {
            let seen = fixture.send("GET", &format!("/platform/credit/all{query}"), &token, Value::Null).await;
            let page = seen.json();
            let names: Vec<_> = page["user_credits"]
                .as_array()
                .unwrap()
                .iter()
                .map(|user| user["username"].as_str().unwrap())
                .collect();
            assert_eq!((seen.status, names, &page["total"]), (200, found, &json!(total)), "{query}");
        }
        let wrong = fixture.send("GET", "/platform/credit/all?page=0", &token, Value::Null).await;
        wrong.is(400, refusal("PAG001", "Invalid page or page size"));
    }
}

#[tokio::test]
async fn callers_replace_their_own_key_and_nothing_else() {
    for (fixture, _servers) in in_either_store(&[KEY]).await {
        let own = fixture.with_role("plain", &[]).await;
        let rotate = async |body: Value| fixture.send("POST", "/platform/credit/rotate-key/", &own, body).await;
        let ai = json!({ "api_credit_group": "ai" });
        rotate(ai.clone()).await.is(404, refusal("CRD017", "User credits not found"));
        let credits = doc! { "ai": { "tier_name": "basic", "available_credits": 3, "user_api_key": "sk-old" },
        "maps": { "tier_name": "basic", "available_credits": 4 } };
        let document = doc! { "username": "plain", "users_credits": credits };
        fixture.identity.store().insert(Collection::UserCredits, document).await.unwrap();
        let seen = rotate(ai.clone()).await;
        let key = seen.json()["api_key"].as_str().unwrap().to_owned();
        assert_eq!((seen.status, key.len()), (200, 43), "{seen:?}");
        assert_ne!(rotate(ai).await.json()["api_key"], key);
        let read = fixture.send("GET", "/platform/credit/plain", &own, Value::Null).await.json();
        let ai = &read["users_credits"]["ai"];
        assert_eq!((&ai["available_credits"], ai["user_api_key"].as_str().unwrap().len()), (&json!(3), 43));
        assert_eq!(read["users_credits"]["maps"]["user_api_key"], Value::Null);
        let stored = fixture.identity.store().find(Collection::UserCredits, &["plain"]).await.unwrap().unwrap();
        let ai = stored.get_document("users_credits").unwrap().get_document("ai").unwrap();
        assert!(ai.get_str("user_api_key").unwrap().starts_with("enc:"), "{ai:?}");

        for nothing in [json!({}), json!({ "api_credit_group": null }), json!({ "api_credit_group": "" })] {
            rotate(nothing).await.is(400, refusal("CRD020", "api_credit_group is required"));
        }
        assert_eq!(rotate(json!({ "api_credit_group": "other" })).await.status, 404);
        for group in ["ai.user_api_key", "$x"] {
            assert_eq!(rotate(json!({ "api_credit_group": group })).await.json()["error_code"], "CRD009");
        }
    }
}

#[tokio::test]
async fn a_key_that_can_not_be_decrypted_is_said_to_be_so() {
    let fixture = Fixture::with(&[KEY]).await;
    let own = fixture.with_role("plain", &[]).await;
    let sealed = crate::crypt::Sealer::new(Some("another key"), []).unwrap().seal("sk-own").unwrap();
    let credits = doc! { "ai": { "tier_name": "basic", "available_credits": 3, "user_api_key": sealed } };
    let document = doc! { "username": "plain", "users_credits": credits };
    fixture.identity.store().insert(Collection::UserCredits, document).await.unwrap();
    let seen = fixture.send("GET", "/platform/credit/plain", &own, Value::Null).await;
    seen.is(500, refusal("CRD018", "A stored key can't be decrypted with any of the keys that are set"));
}

#[tokio::test]
async fn each_refusal_has_the_code_of_its_route() {
    let fixture = Fixture::usual().await;
    let token = fixture.with_role("nothing", &[]).await;
    let manage = ("CRD001", "You do not have permission to manage credits");
    for (method, path, body, (code, message)) in [
        ("POST", "/platform/credit", definition("ai"), manage),
        ("PUT", "/platform/credit/ai", definition("ai"), manage),
        ("DELETE", "/platform/credit/ai", Value::Null, manage),
        ("POST", "/platform/credit/admin", balances("admin", json!({})), manage),
        ("GET", "/platform/credit/defs", Value::Null, ("CRD002", "Unable to retrieve credits")),
        ("GET", "/platform/credit/defs/ai", Value::Null, ("CRD002", "Unable to retrieve credits")),
        ("GET", "/platform/credit/all", Value::Null, ("CRD002", "Unable to retrieve credits for all users")),
        ("GET", "/platform/credit/admin", Value::Null, ("CRD003", "Unable to retrieve credits for user")),
    ] {
        fixture.send(method, path, &token, body.clone()).await.is(403, refusal(code, message));
        let stranger = fixture.call(method, path).body(body.to_string()).send().await;
        stranger.is(401, json!({ "detail": "Unauthorized" }));
    }
    let stranger = fixture.call("POST", "/platform/credit/rotate-key").body("{}").send().await;
    stranger.is(401, json!({ "detail": "Unauthorized" }));
}

#[tokio::test]
async fn without_a_key_to_encrypt_with_keys_are_stored_as_they_are() {
    let fixture = Fixture::usual().await;
    let token = fixture.token().await;
    assert_eq!(fixture.send("POST", "/platform/credit", &token, definition("ai")).await.status, 201);
    let stored = fixture.identity.store().find(Collection::CreditDefs, &["ai"]).await.unwrap().unwrap();
    assert_eq!(stored.get_str("api_key").unwrap(), "sk-upstream");
}
