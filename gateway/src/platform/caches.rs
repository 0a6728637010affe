//! Starting afresh: `/api/caches` (reference: platform API 29).

use axum::extract::State;
use doorman_crds::role::Permission;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal},
    request::Caller,
};
use crate::store::Change;

pub(super) const PATH: &str = "/api/caches";

const NO_CLEAR: (&str, &str) = ("GTW008", "You do not have permission to clear caches");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(clear))
}

/// Forgets what is cached and starts the counters of requests again; what bytes and quotas have used up stays.
///
/// On every gateway of the store. The counters are those of rates, throttles, tiers and rules; those of sign-ins go on.
#[utoipa::path(delete, path = PATH, tag = "Caches",
    responses((status = 200, description = "It is forgotten.", body = Message)),
    security(("token" = ["manage_gateway"])), extensions(("x-error-codes" = json!(["403 GTW008"]))))]
async fn clear(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGateway, NO_CLEAR).await?;
    let store = platform.identity.store();
    store.reset_counters().await?;
    store.announce(Change::Everything).await;
    tracing::info!(by = %caller.0.principal.username, "All caches were cleared");
    Ok(Answer::message("All caches cleared"))
}
