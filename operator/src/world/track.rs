//! The states that one gateway's objects of one kind went through, numbered, so that what a pod reports (a hash) can be
//! placed before or after a change.

use std::collections::{BTreeMap, HashMap, VecDeque};

use doorman_crds::revision::{ObjectHash, SetHash};

use super::ObjectId;

/// How many states are remembered. A pod further behind than that can't be placed any more.
const HISTORY: usize = 4096;

/// A set of objects, its current state and the states before it.
#[derive(Debug)]
pub struct Track {
    state: SetHash,
    number: u64,
    numbers: HashMap<SetHash, u64>,
    order: VecDeque<SetHash>,
    members: HashMap<ObjectId, (ObjectHash, u64)>,
    changes: BTreeMap<u64, ObjectId>,
}

impl Default for Track {
    fn default() -> Self {
        let empty = SetHash::default();
        Self {
            state: empty,
            number: 0,
            numbers: HashMap::from([(empty, 0)]),
            order: VecDeque::from([empty]),
            members: HashMap::new(),
            changes: BTreeMap::new(),
        }
    }
}

impl Track {
    /// Puts an object in, at another generation, or takes it out; whether that made a new state.
    pub fn set(&mut self, id: &ObjectId, hash: Option<ObjectHash>) -> bool {
        if self.members.get(id).map(|(hash, _)| *hash) == hash {
            return false;
        }
        self.number += 1;
        if let Some((old, since)) = self.members.remove(id) {
            self.state.remove(old);
            self.changes.remove(&since);
        }
        if let Some(hash) = hash {
            self.state.insert(hash);
            self.members.insert(id.clone(), (hash, self.number));
            self.changes.insert(self.number, id.clone());
        }
        if self.numbers.insert(self.state, self.number).is_none() {
            self.order.push_back(self.state);
        }
        if self.order.len() > HISTORY
            && let Some(oldest) = self.order.pop_front()
            && oldest != self.state
        {
            self.numbers.remove(&oldest);
        }
        true
    }

    /// The number of a state; `None` for one that was never seen here or is too long ago.
    pub fn number_of(&self, state: SetHash) -> Option<u64> {
        self.numbers.get(&state).copied()
    }

    /// The number of the current state.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The first state that had this object as it is now.
    pub fn since(&self, id: &ObjectId) -> Option<u64> {
        self.members.get(id).map(|(_, since)| *since)
    }

    /// Objects whose current form came with a state after `from`, up to and with `to`.
    pub fn changed(&self, from: u64, to: u64) -> impl Iterator<Item = &ObjectId> {
        (from < to).then(|| self.changes.range(from + 1..=to)).into_iter().flatten().map(|(_, id)| id)
    }

    /// All objects.
    pub fn members(&self) -> impl Iterator<Item = &ObjectId> {
        self.members.keys()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.members.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> ObjectId {
        ObjectId { namespace: "a".into(), name: n.to_string() }
    }

    fn object(n: u8, generation: i64) -> ObjectHash {
        ObjectHash::of("DoormanApi", &n.to_string(), generation, &[])
    }

    proptest! {
        /// A pod that reports any state of the past serves exactly the objects that did not change after it.
        #[test]
        fn a_state_tells_what_is_served(steps in proptest::collection::vec((0_u8..6, 0_i64..4), 1..40), at in 0_usize..40) {
            let mut track = Track::default();
            let mut states = vec![(SetHash::default(), HashMap::new())];
            let mut now: HashMap<ObjectId, i64> = HashMap::new();
            for (n, generation) in steps {
                // Generation 0 stands for absence.
                let hash = (generation > 0).then(|| object(n, generation));
                track.set(&id(n), hash);
                if generation > 0 { now.insert(id(n), generation); } else { now.remove(&id(n)); }
                let state = now.iter().map(|(id, generation)| object(id.name.parse().unwrap(), *generation)).collect();
                states.push((state, now.clone()));
            }
            let (reported, then) = &states[at % states.len()];
            let number = track.number_of(*reported).unwrap();
            for member in track.members() {
                if track.since(member).unwrap() <= number {
                    prop_assert_eq!(then.get(member), now.get(member));
                }
            }
            let newer: Vec<_> = track.changed(number, track.number()).collect();
            prop_assert!(newer.iter().all(|member| track.since(member).unwrap() > number));
            prop_assert_eq!(track.number_of(states.last().unwrap().0), Some(track.number()));
        }
    }

    #[test]
    fn history_is_bounded_and_keeps_the_present() {
        let mut track = Track::default();
        for generation in 1..=2 * i64::try_from(HISTORY).unwrap() {
            track.set(&id(1), Some(object(1, generation)));
        }
        assert!(track.numbers.len() <= HISTORY && track.order.len() <= HISTORY);
        assert_eq!(track.number_of(track.state), Some(track.number()));
        assert_eq!(track.number_of(SetHash::default()), None);
    }
}
