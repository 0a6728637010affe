//! An API of orders that asks for a subscription, and what its calls cost.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use doorman_tests::gateway::{GatewayProcess, Start};
use doorman_tests::upstream;
use serde_json::{Value, json};

use super::Session;

pub const BINARY: &str = env!("CARGO_BIN_EXE_doorman-gateway");
pub const ECHO: &str = "/api/rest/orders/v1/echo";

/// A gateway, an upstream, an API that asks for a subscription, and the administrator.
pub struct Stage {
    pub gateway: GatewayProcess,
    pub upstream: upstream::Running,
    pub admin: Session,
}

impl Stage {
    pub async fn set(api: Value) -> Result<Self> {
        Self::set_with(api, Start::new(BINARY)?).await
    }

    pub async fn set_with(api: Value, start: Start) -> Result<Self> {
        let upstream = upstream::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let gateway = start.run()?;
        let admin = Session::admin(gateway.url("")).await?;
        define(&admin, &upstream, api).await?;
        Ok(Self { gateway, upstream, admin })
    }

    /// A user with these limits who has subscribed.
    pub async fn user(&self, name: &str, more: Value) -> Result<Session> {
        let user = self.admin.user(name, more).await?;
        user.does("POST", "/platform/subscription/subscribe", subscription(name)).await?;
        Ok(user)
    }
}

pub fn subscription(name: &str) -> Value {
    json!({ "username": name, "api_name": "orders", "api_version": "v1" })
}

pub async fn define(admin: &Session, upstream: &upstream::Running, more: Value) -> Result<()> {
    let mut api = json!({ "api_name": "orders", "api_version": "v1", "api_allowed_groups": ["ALL"],
        "api_servers": [format!("http://{}", upstream.address())] });
    api.as_object_mut().into_iter().for_each(|api| api.extend(more.as_object().cloned().unwrap_or_default()));
    admin.does("POST", "/platform/api", api).await?;
    for (method, uri) in [("GET", "/echo"), ("POST", "/echo"), ("GET", "/stream/{n}")] {
        let endpoint = json!({ "api_name": "orders", "api_version": "v1", "endpoint_method": method,
            "endpoint_uri": uri, "endpoint_description": "x" });
        admin.does("POST", "/platform/endpoint", endpoint).await?;
    }
    Ok(())
}

impl Stage {
    pub async fn gateway_call_without_token(&self, path: &str) -> Result<u16> {
        Ok(self.admin.http.get(self.gateway.url(path)).send().await?.status().as_u16())
    }

    pub async fn credits(&self, name: &str) -> Result<i64> {
        balance(&self.admin, name).await
    }
}

pub async fn balance(admin: &Session, name: &str) -> Result<i64> {
    let credits = admin.does("GET", &format!("/platform/credit/{name}"), Value::Null).await?;
    Ok(credits["users_credits"]["basic"]["available_credits"].as_i64().unwrap_or(-1))
}

pub async fn define_credits(admin: &Session) -> Result<()> {
    let definition = json!({ "api_credit_group": "basic", "api_key": "general-key", "api_key_header": "x-api-key",
        "credit_tiers": [{ "tier_name": "t", "credits": 5, "input_limit": 1, "output_limit": 1,
            "reset_frequency": "monthly" }] });
    admin.does("POST", "/platform/credit", definition).await.map(|_| ())
}

pub async fn give(admin: &Session, name: &str, number: i64, key: Option<&str>) -> Result<()> {
    let balance = json!({ "tier_name": "t", "available_credits": number, "user_api_key": key });
    let body = json!({ "username": name, "users_credits": { "basic": balance } });
    admin.does("POST", &format!("/platform/credit/{name}"), body).await.map(|_| ())
}

pub fn charging() -> Value {
    json!({ "api_credits_enabled": true, "api_credit_group": "basic" })
}
