//! The configuration file over HTTP: `/platform/config/{current,reload,reloadable-keys}` (reference: platform API 21).

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal},
    request::Caller,
};
use crate::{
    reload::{RELOAD, reload as read_again},
    settings::Reloadable,
};

const FAILED: &str = "Failed to reload configuration";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(current)).routes(routes!(reload)).routes(routes!(reloadable_keys))
}

/// Settings by name, and where they come from.
#[derive(Debug, Serialize, ToSchema)]
struct Configuration {
    config: Map<String, Value>,
    source: String,
    reload_command: &'static str,
}

/// What a reload has changed.
#[derive(Debug, Serialize, ToSchema)]
struct ReloadReport {
    message: &'static str,
    config: Map<String, Value>,
    /// Settings that have another value now.
    changed: Vec<&'static str>,
    /// Settings whose new value acts after a restart.
    needs_restart: Vec<&'static str>,
}

/// Keys of the configuration file.
#[derive(Debug, Serialize, ToSchema)]
struct Keys {
    reloadable_keys: Vec<Reloadable>,
    total: usize,
    notes: Vec<&'static str>,
}

fn answer(data: &impl Serialize) -> Answer {
    Answer::data(serde_json::to_value(data).unwrap_or_default())
}

async fn must_manage(caller: &Caller, platform: &Platform) -> Result<(), Refusal> {
    let message = "Insufficient permissions: manage_gateway required";
    caller.must_plainly(platform, Permission::ManageGateway, message).await
}

/// The settings that the configuration file can change, as they are now.
#[utoipa::path(get, path = "/platform/config/current", tag = "Configuration",
    responses((status = 200, description = "Their values.", body = Configuration)),
    security(("token" = ["manage_gateway"])))]
async fn current(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    must_manage(&caller, &platform).await?;
    let settings = &platform.settings;
    Ok(answer(&Configuration {
        config: settings.shown(),
        source: settings.source(),
        reload_command: "kill -HUP <pid>, or POST /platform/config/reload",
    }))
}

/// Reads the configuration file again, in every process.
///
/// A file that would not allow a start is refused and changes nothing; the log tells why.
#[utoipa::path(post, path = "/platform/config/reload", tag = "Configuration",
    responses((status = 200, description = "What is new in the process that answers.", body = ReloadReport)),
    security(("token" = ["manage_gateway"])))]
async fn reload(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    must_manage(&caller, &platform).await?;
    let refused = |_| Refusal::Detail(StatusCode::INTERNAL_SERVER_ERROR, FAILED.into());
    let reloaded = read_again(&platform.settings).await.map_err(refused)?;
    platform.identity.store().announce(RELOAD).await;
    Ok(answer(&ReloadReport {
        message: "Configuration reloaded successfully",
        config: platform.settings.shown(),
        changed: reloaded.changed,
        needs_restart: reloaded.needs_restart,
    }))
}

/// The keys of the configuration file that are shown, and which of them act without a restart.
#[utoipa::path(get, path = "/platform/config/reloadable-keys", tag = "Configuration",
    responses((status = 200, description = "The keys.", body = Keys)), security(("token" = [])))]
async fn reloadable_keys(_caller: Caller) -> Answer {
    let reloadable_keys = Reloadable::all();
    let notes = vec![
        "The file is that of DOORMAN_CONFIG_FILE; nested keys are joined with `_` and upper-cased.",
        "Environment variables win over the file.",
        "SIGHUP and POST /platform/config/reload read the file again.",
    ];
    answer(&Keys { total: reloadable_keys.len(), reloadable_keys, notes })
}
