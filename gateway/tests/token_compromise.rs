//! The operations guide's runbook "Token Compromise Response", line by line, against a running gateway.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use doorman_tests::gateway::{ADMIN_PASSWORD, GatewayProcess, PATIENCE, Start};
use reqwest::{Client, Method};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");
const PASSWORD: &str = "Correct-Horse-9-Battery";
const NEW_PASSWORD: &str = "Another-Horse-8-Battery";
const OLD_KEY: &str = "0123456789abcdef0123456789abcdef";
const NEW_KEY: &str = "fedcba9876543210fedcba9876543210";

async fn call(
    gateway: &GatewayProcess,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Value,
) -> Result<(u16, Value)> {
    let mut request = Client::new().request(method, gateway.url(path));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if !body.is_null() {
        request = request.json(&body);
    }
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or_default()))
}

async fn sign_in(gateway: &GatewayProcess, login: &str, password: &str) -> Result<(u16, Value)> {
    let body = json!({ "email": login, "password": password });
    call(gateway, Method::POST, "/platform/authorization", None, body).await
}

async fn token(gateway: &GatewayProcess, login: &str, password: &str) -> Result<String> {
    let (status, body) = sign_in(gateway, login, password).await?;
    let token = body["access_token"].as_str().with_context(|| format!("no token for {login}: {status} {body}"))?;
    Ok(token.to_owned())
}

async fn status(gateway: &GatewayProcess, token: &str) -> Result<u16> {
    Ok(call(gateway, Method::GET, "/platform/authorization/status", Some(token), Value::Null).await?.0)
}

#[tokio::test]
async fn the_runbook_for_a_compromised_token_works_line_by_line() -> Result<()> {
    let gateway = Start::new(BINARY)?.with("LOG_FORMAT", "json").run()?;
    let admin = token(&gateway, "admin", ADMIN_PASSWORD).await?;
    let user =
        json!({ "username": "affected-user", "email": "affected@example.com", "password": PASSWORD, "role": "user" });
    assert_eq!(call(&gateway, Method::POST, "/platform/user", Some(&admin), user).await?.0, 201);
    let stolen = token(&gateway, "affected-user", PASSWORD).await?;
    assert_eq!(status(&gateway, &stolen).await?, 200);

    // 2. Revoke user's tokens.
    let body = json!({ "username": "affected-user" });
    let answer = call(&gateway, Method::POST, "/platform/authorization/invalidate", Some(&admin), body).await?;
    assert_eq!(answer, (200, json!({ "message": "All tokens revoked for affected-user" })));
    assert_eq!((status(&gateway, &stolen).await?, status(&gateway, &admin).await?), (401, 200));

    // 3. Force password reset.
    let path = "/platform/user/affected-user";
    let body = json!({ "force_password_reset": true });
    let answer = call(&gateway, Method::PUT, path, Some(&admin), body).await?;
    assert_eq!(answer, (200, json!({ "message": "User updated successfully" })));
    let (code, body) = sign_in(&gateway, "affected-user", PASSWORD).await?;
    assert_eq!((code, &body["error_code"]), (403, &json!("AUTH008")));

    // 4. Audit recent activity: the log names the user, what was done, and who did it.
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("All tokens of a user were revoked"));
    let line = line.with_context(|| format!("not in the log:\n{log}"))?;
    assert!(line.contains("affected-user") && line.contains("\"admin\""), "{line}");
    assert!(!log.contains(&stolen) && !log.contains(PASSWORD), "no token and no password is ever in the log");

    // What ends it: a new password, and the revocation taken back.
    let body = json!({ "new_password": NEW_PASSWORD });
    let path = "/platform/user/affected-user/update-password";
    assert_eq!(call(&gateway, Method::PUT, path, Some(&admin), body).await?.0, 200);
    let path = "/platform/authorization/admin/unrevoke/affected-user";
    assert_eq!(call(&gateway, Method::POST, path, Some(&admin), Value::Null).await?.0, 200);
    let fresh = token(&gateway, "affected-user", NEW_PASSWORD).await?;
    assert_eq!(status(&gateway, &fresh).await?, 200);
    assert_eq!(sign_in(&gateway, "affected-user", PASSWORD).await?.0, 400);

    // 5. If widespread compromise, rotate JWT secret and restart: all tokens are invalid.
    drop(gateway);
    let restarted = Start::new(BINARY)?.with("JWT_SECRET_KEY", NEW_KEY).run()?;
    assert_eq!(status(&restarted, &admin).await?, 401);
    let again = token(&restarted, "admin", ADMIN_PASSWORD).await?;
    assert_eq!(status(&restarted, &again).await?, 200);
    Ok(())
}

#[tokio::test]
async fn keys_in_a_folder_are_rotated_and_withdrawn_without_a_restart() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let file = |name: &str| keys.path().join(name);
    let put = |name: &str, content: &str| -> Result<()> {
        fs::write(file(&format!(".{name}")), content)?;
        Ok(fs::rename(file(&format!(".{name}")), file(name))?)
    };
    put("JWT_SECRET_KEY", OLD_KEY)?;
    let folder = keys.path().to_str().context("no path")?;
    let start = Start::new(BINARY)?.with("JWT_SECRET_KEY", "").with("DOORMAN_JWT_KEYS_DIR", folder);
    let gateway = start.run()?;
    let changes = || gateway.log().matches("the token keys have changed").count();
    let seen = async |count: usize| -> Result<()> {
        let start = Instant::now();
        while changes() < count {
            ensure!(start.elapsed() < PATIENCE, "change {count} was never seen:\n{}", gateway.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    let before = token(&gateway, "admin", ADMIN_PASSWORD).await?;

    put("active", "legacy-key")?;
    put("new", NEW_KEY)?;
    seen(1).await?;
    let still_old = token(&gateway, "admin", ADMIN_PASSWORD).await?;
    put("active", "new")?;
    let start = Instant::now();
    let by_new = loop {
        let token = token(&gateway, "admin", ADMIN_PASSWORD).await?;
        if token.split('.').next() != still_old.split('.').next() {
            break token;
        }
        ensure!(start.elapsed() < PATIENCE, "the new key never signs:\n{}", gateway.log());
    };
    for token in [&before, &still_old, &by_new] {
        assert_eq!(status(&gateway, token).await?, 200, "nobody is signed out by a rotation");
    }

    fs::remove_file(file("JWT_SECRET_KEY"))?;
    let start = Instant::now();
    while status(&gateway, &before).await? != 401 {
        ensure!(start.elapsed() < PATIENCE, "the withdrawn key still counts:\n{}", gateway.log());
    }
    assert_eq!((status(&gateway, &still_old).await?, status(&gateway, &by_new).await?), (401, 200));

    fs::remove_file(file("new"))?;
    gateway.logged("the token keys in use stay").await?;
    assert_eq!(status(&gateway, &by_new).await?, 200);
    Ok(())
}
