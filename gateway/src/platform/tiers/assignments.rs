//! Who has which tier, from when until when.
//!
//! What always holds: an assignment names tiers that existed when it was made, and ends after it begins. A change for
//! later, and the way back from a tier for some days, is the assignment that follows (see [`crate::store::tiers`]).

use std::sync::Arc;

use axum::{extract::State, response::Response};
use http::StatusCode;
use mongodb::bson::{Bson, Document, doc, serialize_to_bson};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Deleted, TierId, TierLimits, deleted, must_manage, shown, unknown};
use crate::{
    platform::{
        Platform,
        answer::{Refusal, bare, failed, plainly},
        request::{Asked, At, Caller, PageQuery, Sent, SliceQuery},
        wire::{AnyText, Flag, Int, Text},
    },
    store::{
        Collection, Moment, Store, StoreError, plain_document,
        tiers::{NEXT, in_force},
    },
};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(assign))
        .routes(routes!(read_assignment, unassign))
        .routes(routes!(read_tier_of_user))
        .routes(routes!(list_users))
        .routes(routes!(upgrade))
        .routes(routes!(downgrade))
        .routes(routes!(temporary_upgrade))
        .routes(routes!(start_trial))
        .routes(routes!(payment_failure))
}

/// A tier for a user. It replaces the assignment there is.
#[derive(Debug, Deserialize, ToSchema)]
struct NewAssignment {
    /// The user's name.
    user_id: Text<1, 255>,
    tier_id: AnyText,
    /// Before, the user has the default tier; absent: at once.
    effective_from: Option<Moment>,
    /// From then on, the user has the default tier; absent: for good.
    effective_until: Option<Moment>,
    /// Limits of this user in place of the tier's.
    override_limits: Option<TierLimits>,
    notes: Option<AnyText>,
}

/// Another tier for a user, at once or later.
#[derive(Debug, Deserialize, ToSchema)]
struct Upgrade {
    user_id: Text<1, 255>,
    new_tier_id: AnyText,
    /// Absent: unless there is a date.
    immediate: Option<Flag>,
    /// Until then the user keeps the tier that holds now.
    scheduled_date: Option<Moment>,
}

/// Another tier for a user, at once or after some days.
#[derive(Debug, Deserialize, ToSchema)]
struct Downgrade {
    user_id: Text<1, 255>,
    new_tier_id: AnyText,
    /// Days that the user keeps the tier that holds now.
    #[serde(default = "super::none")]
    grace_period_days: Int<0>,
}

/// Another tier for some days; then the user has again what holds now.
#[derive(Debug, Deserialize, ToSchema)]
struct TemporaryUpgrade {
    user_id: Text<1, 255>,
    temp_tier_id: AnyText,
    duration_days: Int<1>,
}

/// A tier on trial; then the user has again what holds now.
#[derive(Debug, Deserialize, ToSchema)]
struct Trial {
    user_id: Text<1, 255>,
    tier_id: AnyText,
    #[serde(default = "two_weeks")]
    days: Int<1>,
}

fn two_weeks() -> Int<1> {
    Int(14)
}

/// A user who did not pay.
#[derive(Debug, Deserialize, ToSchema)]
struct PaymentFailure {
    user_id: Text<1, 255>,
    /// For the notes of the assignment.
    reason: Option<AnyText>,
}

/// Who has which tier.
#[derive(Debug, Serialize, ToSchema)]
struct TierAssignment {
    user_id: String,
    tier_id: String,
    override_limits: Option<TierLimits>,
    effective_from: Option<Moment>,
    effective_until: Option<Moment>,
    assigned_at: Option<Moment>,
    assigned_by: Option<String>,
    notes: Option<String>,
    /// The assignment that follows this one at its `effective_from`; left out when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    next: Option<Box<TierAssignment>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct UserId {
    /// The user's name.
    user_id: String,
}

/// An assignment in the making.
struct Order<'a> {
    user: &'a str,
    tier: &'a str,
    by: &'a str,
    from: Option<Moment>,
    until: Option<Moment>,
    notes: Option<String>,
}

impl Order<'_> {
    /// With every member, so that storing it leaves nothing of the one before.
    fn document(self) -> Document {
        let moment = |moment: Option<Moment>| moment.map_or(Bson::Null, Bson::from);
        doc! {
            "user_id": self.user,
            "tier_id": self.tier,
            "override_limits": Bson::Null,
            "effective_from": moment(self.from),
            "effective_until": moment(self.until),
            "assigned_at": Moment::now(),
            "assigned_by": self.by,
            "notes": self.notes,
            NEXT: Bson::Null,
        }
    }
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    plainly(StatusCode::BAD_REQUEST, message)
}

fn unassigned(user: &str) -> Refusal {
    plainly(StatusCode::NOT_FOUND, format!("No assignment found for user {user}"))
}

async fn must_exist(store: &Store, tier: &str, otherwise: StatusCode) -> Result<(), Refusal> {
    match store.find(Collection::Tiers, &[tier]).await? {
        Some(_) => Ok(()),
        None => Err(unknown(otherwise, tier)),
    }
}

/// What holds for a user now, without what would follow.
async fn held(store: &Store, user: &str, now: Moment) -> Result<Option<Document>, StoreError> {
    let stored = store.find(Collection::TierAssignments, &[user]).await?;
    let part = stored.as_deref().and_then(|stored| in_force(stored, now)).cloned();
    Ok(part.map(|mut part| {
        part.remove("_id");
        part.insert(NEXT, Bson::Null);
        part
    }))
}

/// How notes call what a user has now.
fn tier_name(held: Option<&Document>) -> &str {
    held.and_then(|held| held.get_str("tier_id").ok()).unwrap_or("default")
}

fn in_days(now: Moment, days: i64) -> Result<Moment, Refusal> {
    now.after_days(days).ok_or_else(|| refused("So many days are more than calendars have"))
}

/// Nothing is said of what follows where nothing does.
fn told(assignment: &Document) -> Value {
    let mut shown = plain_document(assignment);
    match shown.get_mut(NEXT).and_then(Value::as_object_mut) {
        Some(next) => next.remove(NEXT),
        None => shown.remove(NEXT),
    };
    shown.into()
}

async fn keep(store: &Store, assignment: Document, status: StatusCode) -> Result<Response, Refusal> {
    let answer = bare(status, &told(&assignment));
    store.save(Collection::TierAssignments, assignment).await?;
    Ok(answer)
}

/// This for some days, and then again what holds now, unless that has ended by then.
fn for_days(held: Option<Document>, mut order: Order<'_>, now: Moment, end: Moment) -> Document {
    (order.from, order.until) = (Some(now), Some(end));
    let mut assignment = order.document();
    if let Some(mut held) = held.filter(|held| in_force(held, end).is_some()) {
        held.insert("effective_from", end);
        assignment.insert(NEXT, held);
    }
    assignment
}

/// Assignments that name a tier, for now or for later.
pub(super) async fn of_tier(store: &Store, tier_id: &str) -> Result<Vec<Arc<Document>>, StoreError> {
    let names = |part: &Document| part.get_str("tier_id").is_ok_and(|id| id == tier_id);
    let mut all = store.all(Collection::TierAssignments).await?;
    all.retain(|assignment| names(assignment) || assignment.get_document(NEXT).is_ok_and(names));
    Ok(all)
}

/// Assigns a tier to a user; the next call of the user sees it.
#[utoipa::path(post, path = "/platform/tiers/assignments", tag = "Tiers", request_body = NewAssignment,
    responses((status = 201, description = "The assignment.", body = TierAssignment),
        (status = 400, description = "There is no such tier, or it would end before it begins.")),
    security(("token" = ["manage_tiers"])))]
async fn assign(State(platform): State<Platform>, sent: Sent<NewAssignment>) -> Result<Response, Refusal> {
    let Sent { caller, body: new } = sent;
    let caller = caller?;
    must_manage(&caller, &platform).await?;
    if let (Some(from), Some(until)) = (new.effective_from, new.effective_until)
        && until <= from
    {
        return Err(refused("effective_until must be after effective_from"));
    }
    let store = platform.identity.store();
    must_exist(store, &new.tier_id.0, StatusCode::BAD_REQUEST).await?;
    let order = Order {
        user: &new.user_id.0,
        tier: &new.tier_id.0,
        by: &caller.0.principal.username,
        from: new.effective_from,
        until: new.effective_until,
        notes: new.notes.map(|notes| notes.0),
    };
    let mut assignment = order.document();
    assignment.insert("override_limits", serialize_to_bson(&new.override_limits).map_err(|error| failed(&error))?);
    keep(store, assignment, StatusCode::CREATED).await
}

/// Reads the assignment of a user.
#[utoipa::path(get, path = "/platform/tiers/assignments/{user_id}", tag = "Tiers", params(UserId),
    responses((status = 200, description = "The assignment, whether it holds now or not.", body = TierAssignment),
        (status = 404, description = "The user has none.")),
    security(("token" = ["manage_tiers"])))]
async fn read_assignment(
    State(platform): State<Platform>,
    At(UserId { user_id }): At<UserId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let found = platform.identity.store().find(Collection::TierAssignments, &[&user_id]).await?;
    Ok(bare(StatusCode::OK, &told(&*found.ok_or_else(|| unassigned(&user_id))?)))
}

/// Takes the tier from a user, who has the default tier then.
#[utoipa::path(delete, path = "/platform/tiers/assignments/{user_id}", tag = "Tiers", params(UserId),
    responses((status = 200, description = "The assignment is gone.", body = Deleted),
        (status = 404, description = "The user had none.")),
    security(("token" = ["manage_tiers"])))]
async fn unassign(
    State(platform): State<Platform>,
    At(UserId { user_id }): At<UserId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    if !platform.identity.store().remove(Collection::TierAssignments, &[&user_id]).await? {
        return Err(unassigned(&user_id));
    }
    Ok(deleted("Assignment removed"))
}

/// Reads the tier that a user has now, by assignment or by default.
#[utoipa::path(get, path = "/platform/tiers/assignments/{user_id}/tier", tag = "Tiers", params(UserId),
    responses((status = 200, description = "The tier.", body = Value),
        (status = 404, description = "The user has no assignment that holds, and there is no default tier.")),
    security(("token" = ["manage_tiers"])))]
async fn read_tier_of_user(
    State(platform): State<Platform>,
    At(UserId { user_id }): At<UserId>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let tier = platform.identity.store().tier_of(&user_id, Moment::now()).await?;
    let tier = tier.ok_or_else(|| plainly(StatusCode::NOT_FOUND, format!("No tier found for user {user_id}")))?;
    Ok(bare(StatusCode::OK, &shown(&tier)))
}

/// Lists the assignments that name a tier, for now or for later.
#[utoipa::path(get, path = "/platform/tiers/{tier_id}/users", tag = "Tiers", params(TierId, SliceQuery, PageQuery),
    responses((status = 200, description = "The assignments; none for a tier that there isn't.", body = Vec<TierAssignment>)),
    security(("token" = ["manage_tiers"])), extensions(("x-error-codes" = json!(["400 PAG001"]))))]
async fn list_users(
    State(platform): State<Platform>,
    At(TierId { tier_id }): At<TierId>,
    Asked(slice): Asked<SliceQuery>,
    Asked(page): Asked<PageQuery>,
    caller: Caller,
) -> Result<Response, Refusal> {
    must_manage(&caller, &platform).await?;
    let (slice, store) = (slice.slice(&page, &platform)?, platform.identity.store());
    let found: Vec<Value> = slice.cut(of_tier(store, &tier_id).await?).iter().map(|found| told(found)).collect();
    Ok(bare(StatusCode::OK, &found))
}

/// Another tier for good, at once or at that moment.
async fn change(
    platform: &Platform,
    caller: &Caller,
    (user, tier): (&str, &str),
    when: Option<Moment>,
    notes: impl FnOnce(&str) -> String,
) -> Result<Response, Refusal> {
    let (store, now) = (platform.identity.store(), Moment::now());
    must_exist(store, tier, StatusCode::BAD_REQUEST).await?;
    let held = held(store, user, now).await?;
    let notes = Some(notes(tier_name(held.as_ref())));
    let order = Order { user, tier, by: &caller.0.principal.username, from: when.or(Some(now)), until: None, notes };
    let ordered = order.document();
    // The answer is what was ordered, also where something else holds until then.
    let answer = bare(StatusCode::OK, &told(&ordered));
    let assignment = match (when, held) {
        (Some(_), Some(mut held)) => {
            held.insert(NEXT, ordered);
            held
        }
        _ => ordered,
    };
    store.save(Collection::TierAssignments, assignment).await?;
    Ok(answer)
}

/// Gives a user another tier, at once or at a date; until then the user keeps what holds now.
#[utoipa::path(post, path = "/platform/tiers/upgrade", tag = "Tiers", request_body = Upgrade,
    responses((status = 200, description = "The assignment.", body = TierAssignment),
        (status = 400, description = "There is no such tier, or the date is missing, past or at odds with the rest.")),
    security(("token" = ["manage_tiers"])))]
async fn upgrade(State(platform): State<Platform>, sent: Sent<Upgrade>) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    must_manage(&caller, &platform).await?;
    let when = match (body.immediate.map(|flag| flag.0), body.scheduled_date) {
        (None | Some(true), None) => None,
        (None | Some(false), Some(date)) if date > Moment::now() => Some(date),
        (None | Some(false), Some(_)) => return Err(refused("scheduled_date must be in the future")),
        (Some(false), None) => return Err(refused("scheduled_date is required unless immediate")),
        (Some(true), Some(_)) => return Err(refused("scheduled_date can't be given together with immediate")),
    };
    let order = (&*body.user_id.0, &*body.new_tier_id.0);
    change(&platform, &caller, order, when, |from| format!("Upgraded from {from}")).await
}

/// Gives a user another tier, at once or after some days in which the user keeps what holds now.
#[utoipa::path(post, path = "/platform/tiers/downgrade", tag = "Tiers", request_body = Downgrade,
    responses((status = 200, description = "The assignment.", body = TierAssignment),
        (status = 400, description = "There is no such tier, or there are too many days.")),
    security(("token" = ["manage_tiers"])))]
async fn downgrade(State(platform): State<Platform>, sent: Sent<Downgrade>) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    must_manage(&caller, &platform).await?;
    let days = body.grace_period_days.0;
    let when = if days == 0 { None } else { Some(in_days(Moment::now(), days)?) };
    let order = (&*body.user_id.0, &*body.new_tier_id.0);
    change(&platform, &caller, order, when, |from| format!("Downgraded from {from} with {days} day grace period")).await
}

/// A tier for some days.
async fn lend(
    platform: &Platform,
    caller: &Caller,
    (user, tier, days): (&str, &str, i64),
    (what, otherwise): (&str, StatusCode),
) -> Result<Response, Refusal> {
    must_manage(caller, platform).await?;
    let (store, now) = (platform.identity.store(), Moment::now());
    must_exist(store, tier, otherwise).await?;
    let end = in_days(now, days)?;
    let notes = Some(format!("{what} for {days} days"));
    let order = Order { user, tier, by: &caller.0.principal.username, from: None, until: None, notes };
    let held = held(store, user, now).await?;
    keep(store, for_days(held, order, now, end), StatusCode::OK).await
}

/// Gives a user another tier for some days; then the user has again what holds now.
#[utoipa::path(post, path = "/platform/tiers/temporary-upgrade", tag = "Tiers", request_body = TemporaryUpgrade,
    responses((status = 200, description = "The assignment.", body = TierAssignment),
        (status = 400, description = "There is no such tier, or there are too many days.")),
    security(("token" = ["manage_tiers"])))]
async fn temporary_upgrade(
    State(platform): State<Platform>,
    sent: Sent<TemporaryUpgrade>,
) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    let order = (&*body.user_id.0, &*body.temp_tier_id.0, body.duration_days.0);
    lend(&platform, &caller?, order, ("Temporary upgrade", StatusCode::BAD_REQUEST)).await
}

/// Gives a user a tier on trial; then the user has again what holds now.
#[utoipa::path(post, path = "/platform/tiers/trial/start", tag = "Tiers", request_body = Trial,
    responses((status = 200, description = "The assignment.", body = TierAssignment),
        (status = 400, description = "There are too many days."),
        (status = 404, description = "There is no such tier.")),
    security(("token" = ["manage_tiers"])))]
async fn start_trial(State(platform): State<Platform>, sent: Sent<Trial>) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    let order = (&*body.user_id.0, &*body.tier_id.0, body.days.0);
    lend(&platform, &caller?, order, ("Trial", StatusCode::NOT_FOUND)).await
}

/// Gives a user who did not pay the default tier.
#[utoipa::path(post, path = "/platform/tiers/payment/failure", tag = "Tiers", request_body = PaymentFailure,
    responses((status = 200, description = "The assignment.", body = TierAssignment),
        (status = 400, description = "There is no default tier.")),
    security(("token" = ["manage_tiers"])))]
async fn payment_failure(State(platform): State<Platform>, sent: Sent<PaymentFailure>) -> Result<Response, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    must_manage(&caller, &platform).await?;
    let store = platform.identity.store();
    let tier = store.default_tier().await?;
    let tier = tier.as_deref().and_then(|tier| tier.get_str("tier_id").ok());
    let order = Order {
        user: &body.user_id.0,
        tier: tier.ok_or_else(|| refused("No default tier configured for fallback"))?,
        by: &caller.0.principal.username,
        from: Some(Moment::now()),
        until: None,
        notes: Some(
            body.reason.map_or_else(|| "Payment failed".to_owned(), |reason| format!("Payment failed: {}", reason.0)),
        ),
    };
    keep(store, order.document(), StatusCode::OK).await
}
