//! The dashboard: `/platform/dashboard` (reference: platform API 26).

use std::collections::BTreeMap;

use axum::extract::State;
use mongodb::bson::Bson;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal, failed},
    request::Caller,
};
use crate::{store::Collection, telemetry::traffic::Dashboard};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(read))
}

/// Tells of the last thirty days.
#[utoipa::path(get, path = "/platform/dashboard", tag = "Dashboard",
    responses((status = 200, description = "Numbers, and who and what was busiest.", body = Dashboard)),
    security(("token" = [])))]
async fn read(State(platform): State<Platform>, _: Caller) -> Result<Answer, Refusal> {
    let (traffic, apis) = (platform.telemetry.traffic.clone(), platform.snapshot.load().served);
    let dashboard = tokio::task::spawn_blocking(move || traffic.dashboard(apis)).await;
    let mut dashboard = dashboard.map_err(|error| failed(&error))?;
    let mut users_of_api: BTreeMap<String, usize> = BTreeMap::new();
    for subscriptions in platform.identity.store().all(Collection::Subscriptions).await? {
        let labels: Vec<&str> = subscriptions
            .get_array("apis")
            .map(|apis| apis.iter().filter_map(Bson::as_str).collect())
            .unwrap_or_default();
        let username = subscriptions.get_str("username").unwrap_or_default();
        if let Some(user) = dashboard.active_users_list.iter_mut().find(|user| user.username == username) {
            user.subscribers = labels.len();
        }
        // Two versions of one API are one API here.
        let mut names: Vec<&str> = labels.iter().filter_map(|label| label.split('/').next()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            *users_of_api.entry(name.to_owned()).or_default() += 1;
        }
    }
    for api in &mut dashboard.popular_apis {
        let name = api.name.split_once(':').map_or("", |(_, name)| name);
        api.subscribers = users_of_api.get(name).copied().unwrap_or_default();
    }
    Ok(Answer::data(serde_json::to_value(dashboard).unwrap_or_default()))
}
