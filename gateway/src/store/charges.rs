//! Charges: what makes the taking of a credit, and taking that back, happen once each, whatever was heard of them.
//!
//! Balances in MongoDB have places beside them, `open_charges.PROCESS-N`. Taking a credit leaves the charge's id in its
//! place, in the same operation. Revoking gives the credit back where the id stands, and marks the place as spent in any
//! case: a taking that was begun before and arrives later finds that and takes nothing. So a charge can be revoked after
//! every outcome, as often as it takes. A place is used again by later charges of its process, unless nobody knows what
//! became of an operation on it, which may still be under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use mongodb::bson::{Bson, Document, oid::ObjectId};

/// The member of a user's document that holds the places.
pub const OPEN_CHARGES: &str = "open_charges";
/// A place that was not used for so long belongs to a process that is gone.
const KEPT: Duration = Duration::from_secs(86_400);

/// What is known of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    NotTaken,
    Taken,
    /// It was asked for, and there is no answer.
    Unknown,
}

/// One credit that a call costs.
#[derive(Debug)]
pub struct Charge {
    /// Whose it is.
    pub username: Arc<str>,
    /// Of which group.
    pub group: Arc<str>,
    pub(super) id: ObjectId,
    outcome: Outcome,
    place: Option<Place>,
}

impl Charge {
    pub(super) fn new(username: &Arc<str>, group: &Arc<str>, places: Option<&Arc<Places>>) -> Self {
        Self {
            username: username.clone(),
            group: group.clone(),
            id: ObjectId::new(),
            outcome: Outcome::NotTaken,
            place: places.map(|places| places.lease(username)),
        }
    }

    /// May a credit have been taken?
    pub fn is_open(&self) -> bool {
        self.outcome != Outcome::NotTaken
    }

    /// A credit is asked for; until [`Self::set_taken`] is called, nobody knows whether it was taken.
    pub(super) fn begin(&mut self) {
        self.outcome = Outcome::Unknown;
        self.change_place(|place| place.under_way += 1);
    }

    /// A credit was taken, or was not, for certain.
    pub(super) fn set_taken(&mut self, is_taken: bool) {
        self.outcome = if is_taken { Outcome::Taken } else { Outcome::NotTaken };
        self.change_place(|place| place.under_way = 0);
    }

    /// It is being revoked; until [`Self::set_revoked`] is called, that may still be under way.
    pub(super) fn begin_revoking(&mut self) {
        self.change_place(|place| place.under_way += 1);
    }

    /// The credit was given back, or can't be taken any more.
    pub(super) fn set_revoked(&mut self) {
        self.outcome = Outcome::NotTaken;
        self.change_place(|place| place.under_way = place.under_way.saturating_sub(1));
    }

    fn change_place(&mut self, change: impl FnOnce(&mut Place)) {
        if let Some(place) = &mut self.place {
            change(place);
        }
    }

    /// The path of its place in the user's document.
    pub(super) fn path(&self) -> String {
        let place = self.place.as_ref();
        place.map(|place| format!("{OPEN_CHARGES}.{}-{}", place.places.process, place.number)).unwrap_or_default()
    }

    /// What stands in its place after it was revoked.
    pub(super) fn spent(&self) -> String {
        self.id.to_hex()
    }
}

/// A place in a user's document that is a charge's alone.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    username: Arc<str>,
    number: u32,
    /// Operations on it that nobody knows the end of. While there are any, it is never used again.
    under_way: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.put_back(self);
    }
}

/// Places of one user.
#[derive(Debug, Default)]
struct OfUser {
    free: Vec<u32>,
    /// The first number that was never used.
    next: u32,
}

/// The places of this process.
#[derive(Debug)]
pub(super) struct Places {
    process: String,
    users: Mutex<HashMap<Arc<str>, OfUser>>,
}

impl Default for Places {
    fn default() -> Self {
        Self { process: ObjectId::new().to_hex(), users: Mutex::default() }
    }
}

impl Places {
    fn users(&self) -> MutexGuard<'_, HashMap<Arc<str>, OfUser>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(self: &Arc<Self>, username: &Arc<str>) -> Place {
        let mut users = self.users();
        let user = users.entry(username.clone()).or_default();
        let number = user.free.pop().unwrap_or_else(|| {
            user.next += 1;
            user.next - 1
        });
        drop(users);
        Place { places: self.clone(), username: username.clone(), number, under_way: 0 }
    }

    fn put_back(&self, place: &Place) {
        let mut users = self.users();
        let Some(user) = users.get_mut(&place.username).filter(|_| place.under_way == 0) else { return };
        user.free.push(place.number);
        if user.free.len() == user.next as usize {
            users.remove(&place.username);
        }
    }
}

/// The places in a document of balances that nobody uses any more, with what stands in them.
pub(super) fn abandoned(document: &Document) -> Vec<(String, Bson)> {
    let begun = |mark: &Bson| match mark {
        Bson::ObjectId(id) => Some(id.timestamp()),
        Bson::String(spent) => ObjectId::parse_str(spent).ok().map(|id| id.timestamp()),
        _ => None,
    };
    let is_old = |mark: &Bson| {
        let age = begun(mark).and_then(|begun| SystemTime::now().duration_since(begun.to_system_time()).ok());
        age.is_some_and(|age| age > KEPT)
    };
    let places = document.get_document(OPEN_CHARGES).into_iter().flatten();
    places.filter(|(_, mark)| is_old(mark)).map(|(place, mark)| (place.clone(), mark.clone())).collect()
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, doc};

    use super::*;

    #[test]
    fn a_place_is_a_charges_alone_and_used_again_unless_something_may_be_under_way() {
        let places = Arc::new(Places::default());
        let charge = |user: &str| Charge::new(&user.into(), &"basic".into(), Some(&places));
        let (one, mut other) = (charge("amy"), charge("amy"));
        assert_ne!(one.path(), other.path());
        assert_eq!(one.path(), charge("bob").path(), "that is another document");
        let first = one.path();
        drop(one);
        assert_eq!(charge("amy").path(), first);
        other.begin();
        let second = other.path();
        drop(other);
        let (one, other) = (charge("amy"), charge("amy"));
        assert!(one.path() == first && ![&first, &second].contains(&&other.path()));
        drop((one, other));
        assert_eq!(places.users().len(), 1, "what may be under way is remembered");
    }

    #[test]
    fn nothing_is_remembered_of_users_without_open_charges() {
        let places = Arc::new(Places::default());
        let charges: Vec<_> = (0..3).map(|_| Charge::new(&"amy".into(), &"basic".into(), Some(&places))).collect();
        drop(charges);
        assert!(places.users().is_empty());
    }

    #[test]
    fn places_of_processes_that_are_gone_are_found_by_their_age() {
        let old = DateTime::from_millis(1_600_000_000_000);
        let old = ObjectId::from_parts(u32::try_from(old.timestamp_millis() / 1_000).unwrap(), [1; 5], [2; 3]);
        let places = doc! { "a-0": old, "b-0": ObjectId::new(), "c-0": old.to_hex(), "d-0": "odd", "e-0": 7 };
        let found = abandoned(&doc! { "username": "amy", OPEN_CHARGES: places });
        assert_eq!(found.iter().map(|(place, _)| &**place).collect::<Vec<_>>(), ["a-0", "c-0"]);
        assert!(abandoned(&doc! { "username": "amy" }).is_empty());
    }
}
