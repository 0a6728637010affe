//! What the process is up to: `/api/status` (reference: platform API 29, with the members of the operations guide).

use std::time::Duration;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal},
    request::Caller,
};
use crate::{identity::Denied, problem::Problem};

pub(super) const PATH: &str = "/api/status";

/// Nobody is signed in.
const NOT_SIGNED_IN: &str = "GTW401";
/// Who is signed in can't be told.
const UNKNOWN_CALLER: &str = "GTW006";
const FORBIDDEN: (&str, &str) = ("GTW013", "Forbidden");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(read))
}

/// The process and its stores.
#[derive(Debug, Serialize, ToSchema)]
struct GatewayStatus {
    /// `ok`.
    status: &'static str,
    uptime_seconds: u64,
    /// Memory of the process.
    memory_usage_mb: u64,
    /// `memory` or `redis`.
    mode: &'static str,
    /// Do documents answer? Memory does.
    mongodb: bool,
    /// Do counters answer? Memory does.
    redis: bool,
    /// Share of the machine's memory, such as `3.1%`.
    memory_usage: String,
    active_connections: i64,
    /// `1d 2h 3m`, `2h 3m` or `3m 4s`.
    uptime: String,
}

/// A number of kilobytes from a file of the kernel.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn shown(uptime: Duration) -> String {
    let seconds = uptime.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}m {}s", seconds % 60),
        (0, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h {minutes}m"),
    }
}

fn not_signed_in(denied: Denied) -> Problem {
    match denied {
        Denied::Unauthorized | Denied::Csrf => Problem::new(denied.status(), NOT_SIGNED_IN, denied.reason()),
        Denied::Documents | Denied::Unavailable => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, UNKNOWN_CALLER, "Internal server error")
        }
    }
}

/// Tells how long the gateway has been up, its memory, connections and stores.
#[utoipa::path(get, path = PATH, tag = "Gateway",
    responses((status = 200, description = "It answers.", body = GatewayStatus)),
    security(("token" = ["manage_gateway"])),
    extensions(("x-error-codes" = json!(["401 GTW401", "403 GTW013", "500 GTW006"]))))]
async fn read(State(platform): State<Platform>, caller: Result<Caller, Denied>) -> Result<Answer, Refusal> {
    let caller = caller.map_err(not_signed_in)?;
    caller.must(&platform, Permission::ManageGateway, FORBIDDEN).await?;
    let (store, telemetry) = (platform.identity.store(), &platform.telemetry);
    let health = store.health();
    let uptime = telemetry.started.elapsed();
    let own = kilobytes("/proc/self/status", "VmRSS").unwrap_or_default();
    let all = kilobytes("/proc/meminfo", "MemTotal").filter(|all| *all > 0).unwrap_or(u64::MAX);
    let status = GatewayStatus {
        status: "ok",
        uptime_seconds: uptime.as_secs(),
        memory_usage_mb: own / 1024,
        mode: store.cache_backend(),
        mongodb: health.mongodb,
        redis: health.redis,
        memory_usage: format!("{:.1}%", own as f64 / all as f64 * 100.0),
        active_connections: telemetry.connections.get(),
        uptime: shown(uptime),
    };
    Ok(Answer::data(serde_json::to_value(status).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_by_its_size() {
        let shown = |seconds| super::shown(Duration::from_secs(seconds));
        assert_eq!([shown(184), shown(7_380), shown(93_780)], ["3m 4s", "2h 3m", "1d 2h 3m"]);
        assert!(kilobytes("/proc/self/status", "VmRSS").unwrap() > 1_000);
    }
}
