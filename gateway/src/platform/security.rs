//! Who may reach the gateway, and when it dumps its memory: `/platform/security` (reference: platform API 18).

use axum::extract::State;
use doorman_crds::role::Permission;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal},
    request::{Caller, MaybeSent, Origin, Sent},
    wire::{AnyText, Flag, Int},
};
use crate::{
    problem::Problem,
    security::{Update, UpdateError},
};

/// Where the settings are; the one path that the address filter leaves open.
pub const SETTINGS: &str = "/platform/security/settings";

const NO_READ: (&str, &str) = ("SEC001", "You do not have permission to view security settings");
const NO_UPDATE: (&str, &str) = ("SEC002", "You do not have permission to update security settings");
const NO_RESTART: (&str, &str) = ("SEC003", "You do not have permission to restart the gateway");
/// Nobody would start the process again.
const NOT_SUPERVISED: &str = "SEC004";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(read, update)).routes(routes!(restart))
}

/// What to change of the security settings; what is absent or null stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct SettingsUpdate {
    /// Dump the memory regularly; turning it on, and each further change, dumps at once.
    enable_auto_save: Option<Flag>,
    /// The same.
    auto_save_memory_enabled: Option<Flag>,
    /// Seconds between two regular dumps, 60 or more.
    auto_save_frequency_seconds: Option<Int<{ i64::MIN }>>,
    /// The same in minutes.
    auto_save_memory_interval_minutes: Option<f64>,
    /// Where dumps go: a file, to whose name the time is added, or a folder.
    dump_path: Option<AnyText>,
    /// Addresses and CIDRs that may reach the gateway; empty: all may.
    ip_whitelist: Option<Vec<AnyText>>,
    /// Addresses and CIDRs that may not.
    ip_blacklist: Option<Vec<AnyText>>,
    /// Believe the client address in forwarding headers.
    trust_x_forwarded_for: Option<Flag>,
    /// The proxies whose headers are believed.
    xff_trusted_proxies: Option<Vec<AnyText>>,
    /// Callers on this machine skip both lists.
    allow_localhost_bypass: Option<Flag>,
}

impl From<SettingsUpdate> for Update {
    fn from(sent: SettingsUpdate) -> Self {
        let texts = |list: Vec<AnyText>| list.into_iter().map(|text| text.0).collect();
        Self {
            enable_auto_save: sent.enable_auto_save.map(|flag| flag.0),
            auto_save_memory_enabled: sent.auto_save_memory_enabled.map(|flag| flag.0),
            auto_save_frequency_seconds: sent.auto_save_frequency_seconds.map(|seconds| seconds.0),
            auto_save_memory_interval_minutes: sent.auto_save_memory_interval_minutes,
            dump_path: sent.dump_path.map(|path| path.0),
            ip_whitelist: sent.ip_whitelist.map(texts),
            ip_blacklist: sent.ip_blacklist.map(texts),
            trust_x_forwarded_for: sent.trust_x_forwarded_for.map(|flag| flag.0),
            xff_trusted_proxies: sent.xff_trusted_proxies.map(texts),
            allow_localhost_bypass: sent.allow_localhost_bypass.map(|flag| flag.0),
        }
    }
}

/// The settings in force.
#[derive(Debug, Serialize, ToSchema)]
struct SecurityShown {
    enable_auto_save: bool,
    auto_save_memory_enabled: bool,
    auto_save_frequency_seconds: u64,
    auto_save_memory_interval_minutes: f64,
    dump_path: String,
    ip_whitelist: Vec<String>,
    ip_blacklist: Vec<String>,
    trust_x_forwarded_for: bool,
    xff_trusted_proxies: Vec<String>,
    allow_localhost_bypass: bool,
    /// Is everything in memory?
    memory_only: bool,
    /// Does the environment decide about `allow_localhost_bypass`? (reading)
    allow_localhost_bypass_locked: Option<bool>,
    /// What to look at. (reading)
    security_warnings: Option<Vec<String>>,
    /// The caller's address, as the lists see it. (reading)
    client_ip: Option<String>,
    /// The first one of `X-Forwarded-For`. (reading)
    client_ip_xff: Option<String>,
}

fn shown(platform: &Platform) -> Map<String, Value> {
    let mut settings = platform.persistence.security().active().effective.to_json();
    settings.insert("memory_only".to_owned(), platform.settings.storage.is_memory().into());
    settings
}

/// Reads the security settings in force.
#[utoipa::path(get, path = "/platform/security/settings", tag = "Security",
    responses((status = 200, description = "The settings.", body = SecurityShown)),
    security(("token" = ["manage_security"])), extensions(("x-error-codes" = json!(["403 SEC001"]))))]
async fn read(
    State(platform): State<Platform>,
    caller: Caller,
    origin: Origin,
    headers: HeaderMap,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageSecurity, NO_READ).await?;
    let security = platform.persistence.security();
    let first = |value: &http::HeaderValue| Some(value.to_str().ok()?.split(',').next()?.trim().to_owned());
    let mut settings = shown(&platform);
    settings.extend([
        ("allow_localhost_bypass_locked".to_owned(), security.pins().pins_localhost_bypass().into()),
        ("security_warnings".to_owned(), security.active().effective.warnings().into()),
        ("client_ip".to_owned(), origin.address.to_string().into()),
        ("client_ip_xff".to_owned(), json!(headers.get("x-forwarded-for").and_then(first))),
    ]);
    Ok(Answer::data(settings))
}

/// Changes security settings, at once and on every gateway of the store.
#[utoipa::path(put, path = "/platform/security/settings", tag = "Security",
    request_body = Option<SettingsUpdate>,
    responses((status = 200, description = "The settings now.", body = SecurityShown)),
    security(("token" = ["manage_security"])), extensions(("x-error-codes" = json!(["403 SEC002"]))))]
async fn update(
    State(platform): State<Platform>,
    MaybeSent(sent): MaybeSent<SettingsUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageSecurity, NO_UPDATE).await?;
    platform.persistence.update_security(&body.into()).await.map_err(|error| match error {
        UpdateError::Invalid(invalid) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "VAL001", invalid.to_string()).into()
        }
        UpdateError::Store(error) => Refusal::from(error),
    })?;
    tracing::info!(by = %caller.0.principal.username, "The security settings were updated");
    Ok(Answer::data(shown(&platform)))
}

/// Stops the process in an orderly way and starts it again.
#[utoipa::path(post, path = "/platform/security/restart", tag = "Security",
    responses((status = 202, description = "It will be restarted.", body = Message)),
    security(("token" = ["manage_security"])),
    extensions(("x-error-codes" = json!(["403 SEC003", "409 SEC004"]))))]
async fn restart(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageSecurity, NO_RESTART).await?;
    if !is_supervised(&platform).await {
        let message = "Restart not supported: no PID file found (run using 'doorman start' or contact your admin)";
        return Err(Problem::new(StatusCode::CONFLICT, NOT_SUPERVISED, message).into());
    }
    tracing::warn!(by = %caller.0.principal.username, "A restart was scheduled");
    platform.restart.notify_one();
    Ok(Answer::accepted("Restart scheduled"))
}

/// In a cluster, or when whoever started this process said so in the PID file.
async fn is_supervised(platform: &Platform) -> bool {
    let settings = &platform.settings;
    if settings.definitions.gateway_name.is_some() {
        return true;
    }
    let written = tokio::fs::read_to_string(&settings.server.pid_file).await;
    written.is_ok_and(|id| id.trim().parse() == Ok(std::process::id()))
}
