//! The configuration file over HTTP, as the reference has it (platform API 21).

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;

async fn with_file(text: &str, more: &[(&str, &str)]) -> (Fixture, TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doorman.yaml");
    fs::write(&path, text).unwrap();
    let named = [("DOORMAN_CONFIG_FILE", path.to_str().unwrap())];
    let fixture = Fixture::with(&[&named, more].concat()).await;
    (fixture, folder, path)
}

#[tokio::test]
async fn a_reload_acts_on_the_next_request() {
    let (fixture, _folder, path) = with_file("log: {level: ERROR}", &[]).await;
    let admin = fixture.token().await;
    let current = fixture.send("GET", "/platform/config/current", &admin, Value::Null).await.json();
    assert_eq!(
        (&current["config"]["LOG_LEVEL"], &current["config"]["MAX_BODY_SIZE_BYTES"]),
        (&json!("ERROR"), &json!(1_048_576))
    );
    assert!(current["source"].as_str().unwrap().contains("doorman.yaml"));
    assert!(current["reload_command"].is_string());

    let group = json!({ "group_name": "team", "group_description": "x".repeat(100) });
    fs::write(&path, "max_body_size_bytes: 50\nport: 1\nstrict_response_envelope: true").unwrap();
    let seen = fixture.send("POST", "/platform/config/reload", &admin, Value::Null).await;
    // The envelope is one of the settings that changed.
    let report = &seen.json()["response"];
    assert_eq!(report["message"], "Configuration reloaded successfully");
    assert_eq!(report["changed"], json!(["MAX_BODY_SIZE_BYTES", "LOG_LEVEL", "STRICT_RESPONSE_ENVELOPE"]));
    assert_eq!(report["needs_restart"], json!(["PORT"]));
    assert_eq!(report["config"]["LOG_LEVEL"], "INFO");
    let refused = fixture.send("POST", "/platform/group", &admin, group.clone()).await;
    assert_eq!((refused.status, &refused.json()["error_code"]), (413, &json!("REQ001")));

    fs::write(&path, "").unwrap();
    fixture.send("POST", "/platform/config/reload", &admin, Value::Null).await;
    fixture
        .send("POST", "/platform/group", &admin, group)
        .await
        .is(201, json!({ "message": "Group created successfully" }));
}

#[tokio::test]
async fn a_file_that_allows_no_start_changes_nothing() {
    let (fixture, _folder, path) = with_file("max_body_size_bytes: 60000", &[]).await;
    let admin = fixture.token().await;
    fs::write(&path, "https_only: perhaps").unwrap();
    let seen = fixture.send("POST", "/platform/config/reload", &admin, Value::Null).await;
    seen.is(500, json!({ "detail": "Failed to reload configuration" }));
    let current = fixture.send("GET", "/platform/config/current", &admin, Value::Null).await.json();
    assert_eq!(current["config"]["MAX_BODY_SIZE_BYTES"], 60_000);
}

#[tokio::test]
async fn the_role_as_it_is_now_decides() {
    let fixture = Fixture::usual().await;
    let (admin, user) = (fixture.token().await, fixture.with_role("ops", &[Permission::ManageGateway]).await);
    assert_eq!(fixture.send("GET", "/platform/config/current", &user, Value::Null).await.status, 200);
    fixture.send("PUT", "/platform/role/ops", &admin, json!({ "manage_gateway": false })).await;
    let refusal = json!({ "detail": "Insufficient permissions: manage_gateway required" });
    for (method, path) in [("GET", "/platform/config/current"), ("POST", "/platform/config/reload")] {
        fixture.send(method, path, &user, Value::Null).await.is(403, refusal.clone());
        fixture.call(method, path).send().await.is(401, json!({ "detail": "Unauthorized" }));
    }
    let keys = fixture.send("GET", "/platform/config/reloadable-keys", &user, Value::Null).await.json();
    let listed = keys["reloadable_keys"].as_array().unwrap();
    assert_eq!(keys["total"], listed.len());
    for key in ["LOG_LEVEL", "CIRCUIT_BREAKER_THRESHOLD", "FEATURE_COST_ANALYTICS"] {
        let listed = listed.iter().find(|listed| listed["key"] == key).unwrap();
        assert!(listed["description"].is_string() && listed["example"].is_string());
    }
}
