//! Tools for operators: `/platform/tools` (reference: platform API 22).
//!
//! What the CORS report says is not computed here but taken from the filter that it tells of.

use std::time::Duration;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal},
    cors,
    request::{Caller, Sent},
    wire::{AnyText, Flag, Int},
};
use crate::{
    problem::Problem,
    settings::{Network, Origins},
    store::outage::{Backend, LONGEST},
};

/// Where the routes are that played outages don't disturb.
pub(super) const OUTAGES: &str = "/platform/tools/chaos/";

const NO_TOOLS: (&str, &str) = ("TLS001", "You do not have permission to use tools");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(check_cors))
        .routes(routes!(check_grpc))
        .routes(routes!(toggle_outage))
        .routes(routes!(outage_statistics))
}

/// A browser's request to look at.
#[derive(Debug, Deserialize, ToSchema)]
struct CorsQuestion {
    /// Where the page of the script comes from.
    origin: AnyText,
    /// The method it wants to use.
    method: AnyText,
    /// The headers it wants to send.
    request_headers: Option<Vec<AnyText>>,
    /// Does it send cookies? Absent: if it may.
    with_credentials: Option<Flag>,
}

/// What the settings say about it.
#[derive(Debug, Serialize, ToSchema)]
struct CorsReport {
    config: Value,
    input: Value,
    preflight: Value,
    actual: Value,
    notes: Vec<String>,
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Value {
    headers.get(name).and_then(|value| value.to_str().ok()).map_or(Value::Null, Value::from)
}

fn report(network: &Network, question: &CorsQuestion) -> CorsReport {
    let allows_credentials = network.allow_credentials;
    let with_credentials = question.with_credentials.map_or(allows_credentials, |flag| flag.0);
    let wanted = question.request_headers.iter().flatten().map(|name| name.0.as_str());
    let (given, normalized): (Vec<&str>, Vec<String>) =
        wanted.map(|name| (name, name.trim().to_ascii_lowercase())).unzip();

    let methods: Vec<String> = cors::methods(network).iter().map(ToString::to_string).collect();
    let names = cors::header_names(network);
    // What can't be a header is no origin that a browser sends.
    let origin = HeaderValue::try_from(question.origin.0.as_str()).ok();
    let preflight = cors::on_preflights(network, origin.as_ref());
    let actual = cors::on_answers(network, origin.as_ref());
    let is_origin_allowed = origin.is_some() && actual.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    let is_method_allowed = methods.iter().any(|method| method.eq_ignore_ascii_case(question.method.0.trim()));
    let is_allowed = |name: &String| names.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    let refused: Vec<String> = normalized.iter().filter(|name| !is_allowed(name)).cloned().collect();

    let mut notes = Vec::new();
    if network.allowed_origins == Origins::Any && allows_credentials {
        notes.push(if network.cors_strict {
            "ALLOWED_ORIGINS is `*` with credentials and CORS_STRICT: only origins on localhost and 127.0.0.1 are allowed, \
             on any port."
        } else {
            "ALLOWED_ORIGINS is `*` with credentials: any page can call the platform API as its visitor. List the \
             origins, or set CORS_STRICT."
        }
        .to_owned());
    }
    if !is_origin_allowed {
        notes.push("The origin is not allowed: see ALLOWED_ORIGINS.".to_owned());
    }
    if !is_method_allowed {
        notes.push("The method is not in ALLOW_METHODS.".to_owned());
    }
    if !refused.is_empty() {
        notes.push(format!("Not in ALLOW_HEADERS: {}.", refused.join(", ")));
    }
    if with_credentials && !allows_credentials {
        notes.push("Credentials are wanted, and ALLOW_CREDENTIALS is off.".to_owned());
    }

    let credentials = text(&actual, &header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
    let credentials = if credentials.is_null() { "false".into() } else { credentials };
    CorsReport {
        config: json!({
            "allowed_origins": match &network.allowed_origins {
                Origins::Any => vec!["*".to_owned()],
                Origins::Listed(list) => list.clone(),
            },
            "effective_allowed_origins": cors::effective_origins(network),
            "allow_credentials": allows_credentials,
            "allow_methods": methods,
            "allow_headers": names,
            "cors_strict": network.cors_strict,
        }),
        input: json!({
            "origin": question.origin,
            "method": question.method,
            "request_headers": given,
            "request_headers_normalized": normalized,
            "with_credentials": with_credentials,
        }),
        preflight: json!({
            "allowed": is_origin_allowed && is_method_allowed && refused.is_empty(),
            "allow_origin": is_origin_allowed,
            "method_allowed": is_method_allowed,
            "headers_allowed": refused.is_empty(),
            "not_allowed_headers": refused,
            "response_headers": {
                "Access-Control-Allow-Origin": text(&preflight, &header::ACCESS_CONTROL_ALLOW_ORIGIN),
                "Access-Control-Allow-Methods": text(&preflight, &header::ACCESS_CONTROL_ALLOW_METHODS),
                "Access-Control-Allow-Headers": text(&preflight, &header::ACCESS_CONTROL_ALLOW_HEADERS),
                "Access-Control-Allow-Credentials": credentials,
                "Vary": text(&preflight, &header::VARY),
            },
        }),
        actual: json!({
            "allowed": is_origin_allowed,
            "response_headers": {
                "Access-Control-Allow-Origin": text(&actual, &header::ACCESS_CONTROL_ALLOW_ORIGIN),
                "Access-Control-Allow-Credentials": credentials,
                "Vary": text(&actual, &header::VARY),
            },
        }),
        notes,
    }
}

/// Tells what a browser on some origin would be allowed to do on `/platform`.
#[utoipa::path(post, path = "/platform/tools/cors/check", tag = "Tools", request_body = CorsQuestion,
    responses((status = 200, description = "The report; its headers are those that are sent.", body = CorsReport)),
    security(("token" = ["manage_security"])), extensions(("x-error-codes" = json!(["403 TLS001"]))))]
async fn check_cors(State(platform): State<Platform>, sent: Sent<CorsQuestion>) -> Result<Answer, Refusal> {
    sent.caller?.must(&platform, Permission::ManageSecurity, NO_TOOLS).await?;
    let report = report(&platform.settings.network, &sent.body);
    Ok(Answer::data(serde_json::to_value(report).unwrap_or_default()))
}

/// What this gateway can do about gRPC.
#[derive(Debug, Serialize, ToSchema)]
struct GrpcReport {
    available: Value,
    reflection_enabled: bool,
    notes: Vec<&'static str>,
    details: Value,
}

/// Tells what this gateway can do about gRPC.
#[utoipa::path(get, path = "/platform/tools/grpc/check", tag = "Tools",
    responses((status = 200, description = "The report.", body = GrpcReport)),
    security(("token" = ["manage_security"])), extensions(("x-error-codes" = json!(["403 TLS001"]))))]
async fn check_grpc(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageSecurity, NO_TOOLS).await?;
    let report = GrpcReport {
        available: json!({ "grpc": false, "grpc_tools_protoc": false }),
        reflection_enabled: platform.settings.live().upstream.grpc_reflection,
        notes: vec!["This version does not call gRPC upstreams."],
        details: json!({}),
    };
    Ok(Answer::data(serde_json::to_value(report).unwrap_or_default()))
}

/// An outage to play.
#[derive(Debug, Deserialize, ToSchema)]
struct OutageOrder {
    /// `redis` or `mongo`, in any case: the store of counters and revocations, or that of documents. In memory mode too.
    backend: AnyText,
    /// On or off.
    enabled: Flag,
    /// Above 0: on, whatever `enabled` says, and off again after so many milliseconds. Ten minutes at the most; without it too.
    duration_ms: Option<Int<{ i64::MIN }>>,
}

/// What is played now.
#[derive(Debug, Serialize, ToSchema)]
struct Outage {
    backend: &'static str,
    enabled: bool,
}

/// Plays an outage of a store in this process, or ends it.
///
/// Whatever needs the store is refused at once, as if it were away; what is cached goes on. An outage ends by itself.
#[utoipa::path(post, path = "/platform/tools/chaos/toggle", tag = "Tools", request_body = OutageOrder,
    responses((status = 200, description = "What is played now.", body = Outage)),
    security(("token" = ["manage_gateway"])), extensions(("x-error-codes" = json!(["400 TLS002", "403 TLS001"]))))]
async fn toggle_outage(State(platform): State<Platform>, sent: Sent<OutageOrder>) -> Result<Answer, Refusal> {
    let Sent { caller, body: order } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageGateway, NO_TOOLS).await?;
    let (backend, name) = match order.backend.0.trim().to_ascii_lowercase().as_str() {
        "redis" => (Backend::Shared, "redis"),
        "mongo" => (Backend::Documents, "mongo"),
        _ => return Err(Problem::new(StatusCode::BAD_REQUEST, "TLS002", "backend must be redis or mongo").into()),
    };
    let outages = platform.identity.store().outages();
    let length = order.duration_ms.and_then(|length| u64::try_from(length.0).ok()).filter(|length| *length > 0);
    let enabled = length.is_some() || order.enabled.0;
    let username = &*caller.0.principal.username;
    if enabled {
        let length = length.map_or(LONGEST, Duration::from_millis).min(LONGEST);
        outages.begin(backend, length);
        tracing::warn!(username, backend = name, ?length, "an outage is played");
    } else {
        outages.stop(backend);
        tracing::warn!(username, backend = name, "no outage is played any more");
    }
    Ok(Answer::data(serde_json::to_value(Outage { backend: name, enabled }).unwrap_or_default()))
}

/// What is played in this process, and what it has cost.
#[derive(Debug, Serialize, ToSchema)]
struct OutageStatistics {
    redis_outage: bool,
    mongo_outage: bool,
    /// Accesses that failed for it since the start of the process.
    error_budget_burn: u64,
}

/// Tells which outages are played in this process.
#[utoipa::path(get, path = "/platform/tools/chaos/stats", tag = "Tools",
    responses((status = 200, description = "What is played, and what it has cost.", body = OutageStatistics)),
    security(("token" = ["manage_gateway"])), extensions(("x-error-codes" = json!(["403 TLS001"]))))]
async fn outage_statistics(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGateway, NO_TOOLS).await?;
    let outages = platform.identity.store().outages();
    let statistics = OutageStatistics {
        redis_outage: outages.is_on(Backend::Shared),
        mongo_outage: outages.is_on(Backend::Documents),
        error_budget_burn: outages.failures(),
    };
    Ok(Answer::data(serde_json::to_value(statistics).unwrap_or_default()))
}
