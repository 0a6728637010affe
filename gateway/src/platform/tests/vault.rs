//! Users' own secrets, as the reference has them (platform API 17).

use super::*;
use crate::store::Collection;

async fn with_key() -> Fixture {
    Fixture::with(&[("VAULT_KEY", "a key for the vault, of a decent length")]).await
}

#[tokio::test]
async fn an_entry_is_added_told_changed_and_deleted_and_its_value_never_told() {
    let fixture = with_key().await;
    let own = fixture.with_role("plain", &[]).await;
    let entry = json!({ "key_name": "smtp pass", "value": "hunter2-hunter2", "description": "mail" });
    let created = fixture.send("POST", "/platform/vault", &own, entry.clone()).await;
    created.is(201, json!({ "message": "Vault entry created successfully" }));
    let twice = fixture.send("POST", "/platform/vault", &own, entry).await;
    twice.is(409, refusal("VAULT004", "Vault entry with key_name \"smtp pass\" already exists"));

    let read = fixture.send("GET", "/platform/vault/smtp%20pass", &own, Value::Null).await;
    let entry = read.json();
    assert_eq!(
        (&entry["username"], &entry["key_name"], &entry["description"]),
        (&json!("plain"), &json!("smtp pass"), &json!("mail"))
    );
    for member in ["created_at", "updated_at"] {
        assert!(entry[member].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{entry}");
    }
    assert_eq!(entry.as_object().unwrap().len(), 5, "and nothing else: {entry}");
    let listed = fixture.send("GET", "/platform/vault", &own, Value::Null).await;
    listed.is(200, json!({ "entries": [entry], "count": 1 }));

    let unchanged = json!({ "message": "No changes made to vault entry" });
    for same in [json!({}), json!({ "description": "mail" }), json!({ "value": "other", "description": null })] {
        fixture.send("PUT", "/platform/vault/smtp%20pass", &own, same).await.is(200, unchanged.clone());
    }
    let changed = fixture.send("PUT", "/platform/vault/smtp%20pass", &own, json!({ "description": "post" })).await;
    changed.is(200, json!({ "message": "Vault entry updated successfully" }));
    let read = fixture.send("GET", "/platform/vault/smtp%20pass", &own, Value::Null).await.json();
    assert_eq!((&read["description"], &read["created_at"]), (&json!("post"), &entry["created_at"]));

    let stored =
        fixture.identity.store().find(Collection::VaultEntries, &["plain", "smtp pass"]).await.unwrap().unwrap();
    let sealed = stored.get_str("encrypted_value").unwrap();
    assert!(sealed.starts_with("v1:") && !format!("{stored:?}").contains("hunter2"), "{stored:?}");
    let vault = crate::crypt::Vault::new("a key for the vault, of a decent length");
    assert_eq!(vault.open("plain@example.com", "plain", sealed).unwrap(), "hunter2-hunter2");

    let deleted = fixture.send("DELETE", "/platform/vault/smtp%20pass", &own, Value::Null).await;
    deleted.is(200, json!({ "message": "Vault entry deleted successfully" }));
    let gone = refusal("VAULT007", "Vault entry not found");
    for (method, body) in [("GET", Value::Null), ("PUT", json!({ "description": "x" })), ("DELETE", Value::Null)] {
        fixture.send(method, "/platform/vault/smtp%20pass", &own, body).await.is(404, gone.clone());
    }
    fixture.send("GET", "/platform/vault", &own, Value::Null).await.is(200, json!({ "entries": [], "count": 0 }));
}

#[tokio::test]
async fn nobody_sees_or_touches_another_users_entries() {
    let fixture = with_key().await;
    let (admin, own) = (fixture.token().await, fixture.with_role("plain", &[]).await);
    fixture.send("POST", "/platform/vault", &own, json!({ "key_name": "a", "value": "x" })).await;
    fixture.send("GET", "/platform/vault", &admin, Value::Null).await.is(200, json!({ "entries": [], "count": 0 }));
    for (method, body) in [("GET", Value::Null), ("PUT", json!({ "description": "x" })), ("DELETE", Value::Null)] {
        assert_eq!(fixture.send(method, "/platform/vault/a", &admin, body).await.status, 404, "{method}");
    }
    let theirs = fixture.send("POST", "/platform/vault", &admin, json!({ "key_name": "a", "value": "y" })).await;
    assert_eq!(theirs.status, 201, "each has names of their own");
    assert_eq!(fixture.send("GET", "/platform/vault/a", &own, Value::Null).await.status, 200);
    fixture.call("GET", "/platform/vault").send().await.is(401, json!({ "detail": "Unauthorized" }));
}

#[tokio::test]
async fn what_can_not_be_kept_is_refused() {
    let fixture = Fixture::usual().await;
    let own = fixture.with_role("plain", &[]).await;
    let message = "Vault encryption is not configured. Set VAULT_KEY in environment variables.";
    let sent = json!({ "key_name": "a", "value": "x" });
    fixture.send("POST", "/platform/vault", &own, sent.clone()).await.is(500, refusal("VAULT001", message));

    let fixture = with_key().await;
    let own = fixture.with_role("plain", &[]).await;
    for body in [
        json!({ "key_name": "", "value": "x" }),
        json!({ "key_name": "k".repeat(256), "value": "x" }),
        json!({ "key_name": "a", "value": "" }),
        json!({ "key_name": "a" }),
        json!({ "key_name": "a", "value": "x", "description": "d".repeat(501) }),
    ] {
        let seen = fixture.send("POST", "/platform/vault", &own, body).await;
        seen.is(422, refusal("VAL001", "Validation Error"));
    }
    fixture.add(User { email: String::new(), ..User::new("plain", "", "plain") }).await;
    let seen = fixture.send("POST", "/platform/vault", &own, sent).await;
    seen.is(400, refusal("VAULT003", "User email is required for vault encryption"));
}

#[tokio::test]
async fn a_vault_has_its_bounds() {
    let fixture = with_key().await;
    let own = fixture.with_role("plain", &[]).await;
    let entry = |name: &str| json!({ "key_name": name, "value": "x".repeat(500_000) });
    assert_eq!(fixture.send("POST", "/platform/vault", &own, entry("one")).await.status, 201);
    let seen = fixture.send("POST", "/platform/vault", &own, entry("two")).await;
    seen.is(400, refusal("VAULT009", "The vault is full: it holds 1000 entries and 1 MiB at most"));
    assert_eq!(fixture.send("DELETE", "/platform/vault/one", &own, Value::Null).await.status, 200);
    assert_eq!(fixture.send("POST", "/platform/vault", &own, entry("two")).await.status, 201);
}
