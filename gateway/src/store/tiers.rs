//! Which tier a user has at a moment (reference: gateway behaviour 7.4).
//!
//! In: assignments as they are stored. Out: the part of one that holds, and the tier it names. An assignment may carry
//! the one that follows it, as its member [`NEXT`]; so a change that is planned and the way back from a trial need no
//! clock that acts.

use std::sync::Arc;

use mongodb::bson::{Bson, Document};

use super::{Collection, Listing, Moment, Store, StoreError};

/// The member of an assignment that holds the one that follows it.
pub const NEXT: &str = "next";

/// The part of an assignment that holds at this moment: the one that follows it as soon as that has begun, else itself.
/// `None`: neither holds, and the user has the default tier. A bound that can't be read is never kept.
pub fn in_force(assignment: &Document, now: Moment) -> Option<&Document> {
    let keeps = |part: &Document, member, is_kept: fn(Moment, Moment) -> bool| match part.get(member) {
        None | Some(Bson::Null) => true,
        Some(bound) => Moment::of(bound).is_some_and(|bound| is_kept(bound, now)),
    };
    let has_begun = |part: &&Document| keeps(part, "effective_from", |from, now| from <= now);
    let part = assignment.get_document(NEXT).ok().filter(has_begun).unwrap_or(assignment);
    (has_begun(&part) && keeps(part, "effective_until", |until, now| now < until)).then_some(part)
}

/// When it may be another part that holds, or none: the nearest bound that is still to come.
pub fn next_change(assignment: &Document, now: Moment) -> Option<Moment> {
    let parts = [Some(assignment), assignment.get_document(NEXT).ok()].into_iter().flatten();
    let bounds = parts.flat_map(|part| ["effective_from", "effective_until"].map(|member| part.get(member)));
    bounds.filter_map(|bound| Moment::of(bound?)).filter(|bound| *bound > now).min()
}

/// Is the tier on? One that is off binds only whom an assignment gives it.
pub fn is_enabled(tier: &Document) -> bool {
    tier.get_bool("enabled").unwrap_or(true)
}

impl Store {
    /// The tier of users without an assignment that holds; of several defaults that are on the one with the smallest id.
    pub async fn default_tier(&self) -> Result<Option<Arc<Document>>, StoreError> {
        let defaults = self.list(Collection::Tiers, &Listing::with("is_default", true)).await?.0;
        Ok(defaults.into_iter().find(|tier| is_enabled(tier)))
    }

    /// The tier of a user at this moment; the default tier also where the assigned one is gone.
    pub async fn tier_of(&self, username: &str, now: Moment) -> Result<Option<Arc<Document>>, StoreError> {
        let assignment = self.find(Collection::TierAssignments, &[username]).await?;
        let held = assignment.as_deref().and_then(|assignment| in_force(assignment, now));
        if let Some(id) = held.and_then(|held| held.get_str("tier_id").ok())
            && let Some(tier) = self.find(Collection::Tiers, &[id]).await?
        {
            return Ok(Some(tier));
        }
        self.default_tier().await
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn tier_at<'a>(assignment: &'a Document, day: &str) -> Option<&'a str> {
        in_force(assignment, day.parse().unwrap()).map(|part| part.get_str("tier_id").unwrap())
    }

    #[test]
    fn an_assignment_holds_within_its_bounds_and_is_followed_by_the_next() {
        let bounded =
            doc! { "tier_id": "trial", "effective_from": "2026-03-02", "effective_until": "2026-03-04T00:00:00Z" };
        for (day, tier) in [("2026-03-01", None), ("2026-03-02", Some("trial")), ("2026-03-04", None)] {
            assert_eq!(tier_at(&bounded, day), tier, "{day}");
        }
        let mut followed = bounded;
        followed
            .insert(NEXT, doc! { "tier_id": "pro", "effective_from": "2026-03-04", "effective_until": "2026-03-06" });
        for (day, tier) in [("2026-03-03", Some("trial")), ("2026-03-04", Some("pro")), ("2026-03-06", None)] {
            assert_eq!(tier_at(&followed, day), tier, "{day}");
        }
        let changes = |day: &str| next_change(&followed, day.parse().unwrap());
        assert_eq!(changes("2026-03-01"), Some("2026-03-02".parse().unwrap()));
        assert_eq!(changes("2026-03-05"), Some("2026-03-06".parse().unwrap()));
        assert_eq!(changes("2026-03-06"), None);
        let unreadable = doc! { "tier_id": "pro", "effective_until": "for ever" };
        assert_eq!(tier_at(&unreadable, "2026-03-01"), None);
        assert_eq!(tier_at(&doc! { "tier_id": "pro", "effective_until": Bson::Null }, "2026-03-01"), Some("pro"));
    }
}
