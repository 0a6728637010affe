//! gRPC services, as an API lists them; its upstream is not asked.

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Asked, NO_DISCOVERY};
use crate::platform::{
    Platform,
    answer::{Answer, Refusal, refused},
    request::{ApiPath, At, Caller},
};

const NO_SERVERS: (&str, &str) = ("GRPC001", "No upstream servers configured");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(services))
}

/// Services of an API.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GrpcServices)]
struct Services {
    /// Those that the API allows by name.
    services: Vec<String>,
    /// Does the API say where its upstream tells of itself?
    reflection_enabled: bool,
    note: &'static str,
}

/// Lists the gRPC services that an API allows by name.
#[utoipa::path(get, path = "/platform/api/{api_name}/{api_version}/grpc/services", tag = "gRPC", params(ApiPath),
    responses((status = 200, description = "The services.", body = Services)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 GRPC001"]))))]
async fn services(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    if !asked.has_servers() {
        return Err(refused(StatusCode::NOT_FOUND, NO_SERVERS.0, NO_SERVERS.1));
    }
    let listed = asked.members.get("api_grpc_allowed_services").and_then(Value::as_array).into_iter().flatten();
    let services: Vec<_> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
    let note = if services.is_empty() {
        "The API allows no service by name, which allows any; the upstream is not asked."
    } else {
        "These are the services that the API allows; the upstream is not asked."
    };
    let reflection_enabled = asked.text("api_grpc_reflection_url").is_some();
    let services = Services { services, reflection_enabled, note };
    Ok(Answer::data(serde_json::to_value(services).unwrap_or_default()))
}
