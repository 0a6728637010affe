//! Who waits for a turn: so many of each user, and no more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Calls of one user that wait in this process at the most.
const MOST: u32 = 100;

type Users = HashMap<Box<str>, u32>;

/// Waiting calls, by user.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<Mutex<Users>>);

/// A place among the waiting; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    waiting: Waiting,
    user: Box<str>,
}

impl Waiting {
    fn users(&self) -> MutexGuard<'_, Users> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place. `None`: there are too many of this user.
    pub(super) fn enter(&self, user: &str) -> Option<Place> {
        let mut users = self.users();
        let number = users.entry(user.into()).or_default();
        if *number >= MOST {
            return None;
        }
        *number += 1;
        Some(Place { waiting: self.clone(), user: user.into() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.waiting.users();
        if let Some(number) = users.get_mut(&self.user) {
            *number -= 1;
            if *number == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_so_many_places_and_gets_them_back() {
        let waiting = Waiting::default();
        let places: Vec<_> = std::iter::from_fn(|| waiting.enter("amy")).collect();
        assert_eq!(places.len(), MOST as usize);
        assert!(waiting.enter("bob").is_some());
        drop(places);
        assert!(waiting.users().is_empty());
        assert!(waiting.enter("amy").is_some());
    }
}
