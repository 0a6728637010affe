//! Who waits for a turn: of each user so many, one after the other. Only the first in a line asks the store, so that it
//! is asked the less the more of them wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls of one user that wait in this process at the most.
const MOST: u32 = 100;

/// Lines of waiting calls, by user.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<Box<str>, Line>>);

#[derive(Debug)]
struct Line {
    number: u32,
    /// Has one permit: to be the first.
    first: Arc<Semaphore>,
}

/// A place in a line; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    waiting: &'a Waiting,
    user: &'a str,
    first: Option<OwnedSemaphorePermit>,
}

impl Waiting {
    fn lines(&self) -> MutexGuard<'_, HashMap<Box<str>, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits to be the first of this user. `None`: too many do.
    pub(super) async fn enter<'a>(&'a self, user: &'a str) -> Option<Place<'a>> {
        let (mut place, first) = self.place(user)?;
        place.first = first.acquire_owned().await.ok();
        Some(place)
    }

    fn place<'a>(&'a self, user: &'a str) -> Option<(Place<'a>, Arc<Semaphore>)> {
        let mut lines = self.lines();
        let new = || Line { number: 0, first: Arc::new(Semaphore::new(1)) };
        let line = lines.entry(user.into()).or_insert_with(new);
        if line.number >= MOST {
            return None;
        }
        line.number += 1;
        Some((Place { waiting: self, user, first: None }, line.first.clone()))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.waiting.lines();
        if let Some(line) = lines.get_mut(self.user) {
            line.number -= 1;
            if line.number == 0 {
                lines.remove(self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn each_user_has_a_line_of_its_own_in_which_the_first_goes_before_the_next() {
        let waiting = Waiting::default();
        let first = waiting.enter("amy").now_or_never().flatten();
        let mut others: Vec<_> = (1..MOST).map(|_| Box::pin(waiting.enter("amy"))).collect();
        assert!(first.is_some() && others.iter_mut().all(|other| other.now_or_never().is_none()));
        assert!(waiting.enter("amy").now_or_never().is_some_and(|place| place.is_none()), "the line is full");
        assert!(waiting.enter("bob").now_or_never().flatten().is_some());
        // One gives up.
        drop(others.remove(0));
        others.push(Box::pin(waiting.enter("amy")));
        assert!(others.iter_mut().all(|other| other.now_or_never().is_none()));
        drop(first);
        assert!(others[1..].iter_mut().all(|other| other.now_or_never().is_none()));
        assert!(others.iter_mut().all(|other| other.now_or_never().flatten().is_some()));
        drop(others);
        assert!(waiting.lines().is_empty());
    }
}
