//! Credits: definitions of their groups, and what users have of them: `/platform/credit` (reference: platform API 13).
//!
//! What always holds: keys are encrypted before they are stored; no answer about a definition has one; a user's own key
//! is told to that user and to those who manage credits only.

use axum::extract::State;
use doorman_crds::{api::PER_CONNECTION, role::Permission};
use http::{HeaderName, HeaderValue, StatusCode};
use mongodb::bson::{Bson, Document, serialize_to_bson};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad, bad_because, failed, refused},
    request::{Asked, At, Caller, PageQuery, Sent, invalid},
    wire::{AnyText, Int, Text},
};
use crate::{
    crypt::Sealer,
    store::{Collection, Moment, StoreError, plain},
};

mod balances;

const NO_MANAGE: (&str, &str) = ("CRD001", "You do not have permission to manage credits");
const NO_LIST: (&str, &str) = ("CRD002", "Unable to retrieve credits");
/// A group of this name can't be kept.
const UNUSABLE_NAME: &str = "CRD009";
/// A key or its header is missing, or can't be sent.
const UNUSABLE_KEY: &str = "CRD010";
/// Definitions on a page unless the client says otherwise.
const DEFINITIONS: u32 = 50;
/// What other routes have in the place of a group's name.
const RESERVED: [&str; 3] = ["all", "defs", "rotate-key"];

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(read))
        .routes(routes!(create))
        .routes(routes!(update, delete))
        .merge(balances::routes())
}

/// How the calls of a group are paid for, and the key they are made with.
#[derive(Deserialize, ToSchema)]
#[schema(as = CreditDefinition)]
struct Definition {
    api_credit_group: Text<1, 50>,
    /// The key that upstreams are sent. It is stored encrypted and never told again.
    api_key: AnyText,
    /// The header that carries it.
    api_key_header: AnyText,
    /// Told, not enforced.
    #[schema(min_items = 1)]
    credit_tiers: Vec<CreditTier>,
    /// The key that takes over: it is sent at once.
    api_key_new: Option<AnyText>,
    /// Kept; nothing depends on it.
    api_key_rotation_expires: Option<Moment>,
}

/// What can be bought.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct CreditTier {
    tier_name: Text<1, 50>,
    credits: Int<{ i64::MIN }>,
    input_limit: Int<{ i64::MIN }>,
    output_limit: Int<{ i64::MIN }>,
    reset_frequency: AnyText,
}

/// What is told of a definition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MaskedCreditDefinition)]
struct Masked {
    api_credit_group: String,
    api_key_header: String,
    api_key_present: bool,
    #[schema(value_type = Vec<CreditTier>)]
    credit_tiers: Value,
}

/// A page of definitions.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreditDefinitions)]
struct Definitions {
    items: Vec<Masked>,
    page: u64,
    page_size: u32,
    has_next: bool,
    total: u64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Group {
    /// The credit group.
    group: String,
}

/// Groups and users share a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Name {
    /// The credit group of a definition, or the user whose credits are meant.
    name: String,
}

impl Masked {
    fn of(stored: &Document) -> Value {
        let text = |member| stored.get_str(member).unwrap_or_default().to_owned();
        json!(Self {
            api_credit_group: text("api_credit_group"),
            api_key_header: text("api_key_header"),
            api_key_present: stored.get_str("api_key").is_ok_and(|key| !key.is_empty()),
            credit_tiers: stored.get("credit_tiers").map_or_else(|| json!([]), plain),
        })
    }
}

/// Refuses names that the database would read as a path or an operator: balances are members by the names of groups.
fn check_group(name: &str) -> Result<(), Refusal> {
    if !crate::store::is_group_name(name) {
        return Err(bad(
            UNUSABLE_NAME,
            "The name of a credit group can't be empty, begin with $ or have dots or NUL in it",
        ));
    }
    Ok(())
}

/// A header that a key can be sent in.
fn check_header(name: &str) -> Result<(), Refusal> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(bad(UNUSABLE_KEY, "api_key_header is not the name of a header: use letters, digits and hyphens"));
    }
    // Many servers read `_` in a name as `-`.
    let meant = name.to_ascii_lowercase().replace('_', "-");
    if PER_CONNECTION.contains(&meant.as_str()) {
        let why = "it belongs to the connection or to the framing of a message";
        return Err(bad_because(UNUSABLE_KEY, format!("api_key_header can't be {name}: {why}")));
    }
    Ok(())
}

/// A key as it is stored. One that is given as it was stored would be encrypted twice.
fn sealed(sealer: &Sealer, key: &str) -> Result<String, Refusal> {
    if Sealer::is_sealed(key) {
        return Err(bad(UNUSABLE_KEY, "A key that begins with enc: is an encrypted one; give the key itself"));
    }
    if HeaderValue::from_bytes(key.as_bytes()).is_err() {
        return Err(bad(UNUSABLE_KEY, "A key can't have line breaks or other control characters in it"));
    }
    sealer.seal(key).map_err(|error| failed(&error).into())
}

/// The members to store; nothing that is null.
fn members(definition: &Definition, sealer: &Sealer) -> Result<Document, Refusal> {
    if definition.api_key.0.is_empty() || definition.api_key_header.0.is_empty() {
        return Err(bad(UNUSABLE_KEY, "API key and header are required"));
    }
    check_header(&definition.api_key_header.0)?;
    let mut members = Document::new();
    members.insert("api_key", sealed(sealer, &definition.api_key.0)?);
    members.insert("api_key_header", &definition.api_key_header.0);
    members.insert("credit_tiers", serialize_to_bson(&definition.credit_tiers).map_err(|error| failed(&error))?);
    if let Some(key) = definition.api_key_new.as_ref().filter(|key| !key.0.is_empty()) {
        members.insert("api_key_new", sealed(sealer, &key.0)?);
    }
    if let Some(expires) = definition.api_key_rotation_expires {
        members.insert("api_key_rotation_expires", expires.to_date());
    }
    Ok(members)
}

/// Lists the definitions of credit groups, without their keys.
#[utoipa::path(get, path = "/platform/credit/defs", tag = "Credits", params(PageQuery),
    responses((status = 200, description = "A page of definitions; 50 unless `page_size` says otherwise.",
        body = Definitions)),
    security(("token" = ["manage_credits"])), extensions(("x-error-codes" = json!(["400 PAG001", "403 CRD002"]))))]
async fn list(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageCredits, NO_LIST).await?;
    let page = query.page(&platform, DEFINITIONS)?;
    let (found, total) = platform.identity.store().list(Collection::CreditDefs, &page.listing()).await?;
    Ok(Answer::data(page.of("items", found.iter().map(|definition| Masked::of(definition)).collect(), total)))
}

/// Reads the definition of a credit group, without its keys.
#[utoipa::path(get, path = "/platform/credit/defs/{group}", tag = "Credits", params(Group),
    responses((status = 200, description = "The definition.", body = Masked)),
    security(("token" = ["manage_credits"])), extensions(("x-error-codes" = json!(["403 CRD002", "404 CRD021"]))))]
async fn read(
    State(platform): State<Platform>,
    At(Group { group }): At<Group>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageCredits, NO_LIST).await?;
    let found = platform.identity.store().find(Collection::CreditDefs, &[&group]).await?;
    let found = found.ok_or_else(|| refused(StatusCode::NOT_FOUND, "CRD021", "Credit definition not found"))?;
    Ok(Answer::data(Masked::of(&found)))
}

/// Defines a credit group.
#[utoipa::path(post, path = "/platform/credit", tag = "Credits", request_body = Definition,
    responses((status = 201, description = "The definition was added.", body = Message)),
    security(("token" = ["manage_credits"])),
    extensions(("x-error-codes" = json!(["400 CRD001", "400 CRD009", "400 CRD010", "403 CRD001"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<Definition>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageCredits, NO_MANAGE).await?;
    let group = new.api_credit_group.0.as_str();
    check_group(group)?;
    if RESERVED.contains(&group) {
        return Err(bad_because(
            UNUSABLE_NAME,
            format!("A credit group can't be called {group}: a route has that name"),
        ));
    }
    if new.credit_tiers.is_empty() {
        return Err(invalid().into());
    }
    let mut document = members(&new, &platform.sealer)?;
    document.insert("api_credit_group", group);
    for member in ["api_key_new", "api_key_rotation_expires"] {
        document.entry(member).or_insert(Bson::Null);
    }
    match platform.identity.store().insert(Collection::CreditDefs, document).await {
        Ok(()) => Ok(Answer::created("Credit definition created successfully")),
        Err(StoreError::Taken) => Err(bad("CRD001", "Credit group already exists")),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the definition of a credit group; `api_key_new` and its date stay when they are left out or null.
#[utoipa::path(put, path = "/platform/credit/{name}", tag = "Credits", params(Name), request_body = Definition,
    responses((status = 200, description = "The definition was changed.", body = Message)),
    security(("token" = ["manage_credits"])),
    extensions(("x-error-codes" = json!(["400 CRD003", "400 CRD004", "400 CRD010", "403 CRD001"]))))]
async fn update(
    State(platform): State<Platform>,
    At(Name { name }): At<Name>,
    sent: Sent<Definition>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageCredits, NO_MANAGE).await?;
    if update.api_credit_group.0 != name {
        return Err(bad("CRD003", "Credit group name cannot be updated"));
    }
    if update.credit_tiers.is_empty() {
        return Err(invalid().into());
    }
    let members = members(&update, &platform.sealer)?;
    if !platform.identity.store().set(Collection::CreditDefs, &[&name], members).await? {
        return Err(bad("CRD004", "Credit definition does not exist for the requested group"));
    }
    Ok(Answer::message("Credit definition updated successfully"))
}

/// Deletes the definition of a credit group; what users have of it stays.
#[utoipa::path(delete, path = "/platform/credit/{name}", tag = "Credits", params(Name),
    responses((status = 200, description = "The definition was deleted.", body = Message)),
    security(("token" = ["manage_credits"])), extensions(("x-error-codes" = json!(["400 CRD007", "403 CRD001"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(Name { name }): At<Name>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageCredits, NO_MANAGE).await?;
    if !platform.identity.store().remove(Collection::CreditDefs, &[&name]).await? {
        return Err(bad("CRD007", "Credit definition does not exist for the requested group"));
    }
    Ok(Answer::message("Credit definition deleted successfully"))
}
