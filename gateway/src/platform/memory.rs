//! Memory dumps on demand: `/platform/memory` (reference: platform API 19).

use std::path::PathBuf;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal, failed},
    request::{MaybeSent, Sent},
    wire::AnyText,
};
use crate::{persistence::PersistenceError, problem::Problem};

const NO_DUMP: (&str, &str) = ("SEC003", "You do not have permission to perform memory dump");
const NO_RESTORE: (&str, &str) = ("SEC004", "You do not have permission to perform memory restore");
/// Documents are in a database.
const NOT_IN_MEMORY: &str = "MEM001";
/// Dumps are never written in the clear.
const NO_KEY: &str = "MEM002";
/// There is no such file.
const NO_FILE: &str = "MEM003";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(dump)).routes(routes!(restore))
}

/// A file.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct Place {
    /// Relative to the working folder. Absent: as the settings say.
    path: Option<AnyText>,
}

impl Place {
    fn path(self) -> Option<PathBuf> {
        self.path.map(|path| path.0).filter(|path| !path.trim().is_empty()).map(PathBuf::from)
    }
}

/// Where the dump is.
#[derive(Debug, Serialize, ToSchema)]
struct Dumped {
    response: DumpedPath,
}

#[derive(Debug, Serialize, ToSchema)]
struct DumpedPath {
    path: String,
}

/// What was restored.
#[derive(Debug, Serialize, ToSchema)]
struct RestoredDump {
    response: DumpOrigin,
}

#[derive(Debug, Serialize, ToSchema)]
struct DumpOrigin {
    version: u32,
    /// ISO 8601, UTC.
    created_at: String,
}

fn refused(error: PersistenceError, not_in_memory: &'static str) -> Refusal {
    match error {
        PersistenceError::NotInMemory => Problem::new(StatusCode::BAD_REQUEST, NOT_IN_MEMORY, not_in_memory),
        PersistenceError::NoKey => Problem::new(StatusCode::BAD_REQUEST, NO_KEY, error.to_string()),
        PersistenceError::Dump(error) if error.is_missing() => {
            Problem::new(StatusCode::NOT_FOUND, NO_FILE, "Dump file not found")
        }
        error => failed(&error),
    }
    .into()
}

/// Writes everything in memory to an encrypted file.
#[utoipa::path(post, path = "/platform/memory/dump", tag = "Memory", request_body = Option<Place>,
    responses((status = 200, description = "It was written.", body = Dumped)),
    security(("token" = ["manage_security"])),
    extensions(("x-error-codes" = json!(["400 MEM001", "400 MEM002", "403 SEC003"]))))]
async fn dump(State(platform): State<Platform>, MaybeSent(sent): MaybeSent<Place>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    caller?.must(&platform, Permission::ManageSecurity, NO_DUMP).await?;
    let written = platform.persistence.dump(body.path()).await;
    let file = written.map_err(|error| refused(error, "Memory dump available only in memory-only mode"))?;
    Ok(Answer::data(json!({ "response": { "path": file.to_string_lossy() } })))
}

/// Replaces everything in memory by what a file holds.
#[utoipa::path(post, path = "/platform/memory/restore", tag = "Memory", request_body = Option<Place>,
    responses((status = 200, description = "It was restored.", body = RestoredDump)),
    security(("token" = ["manage_security"])),
    extensions(("x-error-codes" = json!(["400 MEM001", "400 MEM002", "403 SEC004", "404 MEM003"]))))]
async fn restore(State(platform): State<Platform>, MaybeSent(sent): MaybeSent<Place>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageSecurity, NO_RESTORE).await?;
    let restored = platform.persistence.restore(body.path()).await;
    let dump = restored.map_err(|error| refused(error, "Memory restore available only in memory-only mode"))?;
    tracing::warn!(by = %caller.0.principal.username, created_at = dump.created_at, "The memory was replaced");
    platform.until_served().await;
    Ok(Answer::data(json!({ "response": { "version": dump.version, "created_at": dump.created_at } })))
}
