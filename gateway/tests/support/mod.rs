//! What tests of a managed gateway share: a session on its platform API.

use anyhow::{Result, ensure};
use doorman_tests::gateway::ADMIN_PASSWORD;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

#[allow(dead_code, reason = "not every test needs an API")]
pub mod orders;

/// A password that the platform API takes.
pub const PASSWORD: &str = "Sixteen-or-more-1";

/// A user who has signed in.
pub struct Session {
    pub http: Client,
    base: String,
    pub token: String,
}

impl Session {
    /// The administrator, who may send as many requests as a test needs.
    pub async fn admin(base: String) -> Result<Self> {
        let session = Self::sign_in(base, "admin@doorman.dev", ADMIN_PASSWORD).await?;
        // At first it is one a second.
        let many = 100_000;
        let limits = json!({ "rate_limit_duration": many, "throttle_duration": many, "throttle_queue_limit": many });
        session.does("PUT", "/platform/user/admin", limits).await?;
        Ok(session)
    }

    pub async fn sign_in(base: String, email: &str, password: &str) -> Result<Self> {
        let http = Client::new();
        let login = json!({ "email": email, "password": password });
        let answer: Value =
            http.post(format!("{base}/platform/authorization")).json(&login).send().await?.json().await?;
        let token = answer["access_token"].as_str().unwrap_or_default().to_owned();
        ensure!(!token.is_empty(), "{email} can't sign in: {answer}");
        Ok(Self { http, base, token })
    }

    /// A new user of this name with more members, signed in at the same gateway.
    #[allow(dead_code, reason = "not every test needs other users")]
    pub async fn user(&self, name: &str, more: Value) -> Result<Self> {
        let email = format!("{name}@example.com");
        let mut user = json!({ "username": name, "email": email, "password": PASSWORD, "role": "user",
            "groups": ["ALL"] });
        user.as_object_mut().into_iter().for_each(|user| user.extend(more.as_object().cloned().unwrap_or_default()));
        self.does("POST", "/platform/user", user).await?;
        Self::sign_in(self.base.clone(), &email, PASSWORD).await
    }

    /// A request as this user.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        // A method that is none would show as one that no route has.
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    #[allow(dead_code, reason = "not every test looks at headers")]
    pub async fn get(&self, path: &str) -> Result<Response> {
        Ok(self.request("GET", path).send().await?)
    }

    pub async fn send(&self, method: &str, path: &str, body: Value) -> Result<(u16, Value)> {
        let request = self.request(method, path);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    /// The same, for what must succeed.
    pub async fn does(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        let (status, answer) = self.send(method, path, body).await?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        Ok(answer)
    }
}
