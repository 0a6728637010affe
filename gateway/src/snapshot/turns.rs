//! Whose turn it is among servers, in proportion to their weights.
//!
//! In: weights. Out: turns, which all callers take from one round that starts over at its end. What always holds: after
//! any number of turns since a round began, each server had its exact share of them, rounded up or down. So no server
//! gets bursts, and who is passed over leaves the shares of the others as they are among each other.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Turns of some servers, by their places.
#[derive(Debug)]
pub(super) struct Turns {
    round: Round,
    next: AtomicUsize,
}

#[derive(Debug)]
enum Round {
    /// Each of this many once, in order.
    Equal(usize),
    /// As written down, 6,400 turns at the most.
    Weighted(Box<[u8]>),
}

impl Turns {
    /// Turns by these weights, none of which is 0.
    pub(super) fn new(weights: &[u8]) -> Self {
        let is_equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let round = if is_equal { Round::Equal(weights.len()) } else { Round::Weighted(round(weights)) };
        Self { round, next: AtomicUsize::new(0) }
    }

    /// Turns of a round.
    pub(super) fn len(&self) -> usize {
        match &self.round {
            Round::Equal(servers) => *servers,
            Round::Weighted(round) => round.len(),
        }
    }

    /// Takes the next turn: the place of the server that has it.
    pub(super) fn take(&self) -> usize {
        let next = |turns: usize| self.next.fetch_add(1, Ordering::Relaxed) % turns;
        match &self.round {
            Round::Equal(0 | 1) => 0,
            Round::Equal(servers) => next(*servers),
            Round::Weighted(round) => round.get(next(round.len())).copied().unwrap_or_default().into(),
        }
    }
}

fn greatest_divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { greatest_divisor(other, one % other) }
}

/// One round of turns. Each turn of a server has a first and a last place, so that keeping to them keeps the share
/// exact; of the servers whose turn may come, the one whose must come first gets it. That there always is such an order
/// is the theorem of proportionate fairness (Baruah et al., 1996) for one processor.
fn round(weights: &[u8]) -> Box<[u8]> {
    let divisor = weights.iter().fold(0, |divisor, weight| greatest_divisor(divisor, (*weight).into())).max(1);
    let weights: Vec<u32> = weights.iter().map(|weight| u32::from(*weight) / divisor).collect();
    let total: u32 = weights.iter().sum();
    let mut had = vec![0_u32; weights.len()];
    let turn = |place: u32| {
        let may_come = |server: &usize| had[*server] * total < (place + 1) * weights[*server];
        let must_come = |server: &usize| ((had[*server] + 1) * total).div_ceil(weights[*server]);
        let server = (0..weights.len()).filter(may_come).min_by_key(must_come)?;
        had[server] += 1;
        u8::try_from(server).ok()
    };
    (0..total).map_while(turn).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn taken(turns: &Turns, count: usize) -> Vec<usize> {
        (0..count).map(|_| turns.take()).collect()
    }

    #[test]
    fn rounds_are_interleaved_and_as_short_as_can_be() {
        for (weights, expected) in [
            (&[7][..], &[0][..]),
            (&[1, 1, 1], &[0, 1, 2]),
            (&[100, 100], &[0, 1]),
            (&[3, 1], &[0, 0, 0, 1]),
            (&[75, 25], &[0, 0, 0, 1]),
            (&[5, 1, 1], &[0, 0, 0, 1, 0, 0, 2]),
            (&[1, 2], &[1, 0, 1]),
        ] {
            let turns = Turns::new(weights);
            assert_eq!(turns.len(), expected.len(), "{weights:?}");
            assert_eq!(taken(&turns, expected.len()), expected, "{weights:?}");
            assert_eq!(taken(&turns, expected.len()), expected, "{weights:?}: the next round");
        }
        assert_eq!(Turns::new(&[99, 100]).len(), 199);
    }

    #[test]
    fn callers_at_once_take_exact_shares() {
        let turns = Turns::new(&[5, 3, 2]);
        let seen: Vec<_> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8).map(|_| scope.spawn(|| taken(&turns, 250))).collect();
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        });
        let counts = [0, 1, 2].map(|server| seen.iter().filter(|other| **other == server).count());
        assert_eq!(counts, [1000, 600, 400]);
    }

    proptest! {
        #[test]
        fn each_server_always_had_its_share_rounded_up_or_down(
            weights in prop_oneof![vec(1..=100_u8, 1..=64), vec(1..=3_u8, 1..=8), vec(prop::sample::select(vec![1, 2, 99, 100]), 1..=6)]
        ) {
            let total: usize = weights.iter().copied().map(usize::from).sum();
            let turns = Turns::new(&weights);
            prop_assert_eq!(total % turns.len(), 0);
            let mut had = vec![0_usize; weights.len()];
            for turn in 1..=total {
                had[turns.take()] += 1;
                for (server, (had, weight)) in had.iter().zip(&weights).enumerate() {
                    let share = turn * usize::from(*weight);
                    prop_assert!((share / total..=share.div_ceil(total)).contains(had), "turn {}, server {}", turn, server);
                }
            }
            let shares: Vec<usize> = weights.iter().copied().map(usize::from).collect();
            prop_assert_eq!(had, shares);
        }

        #[test]
        fn who_is_passed_over_leaves_the_others_their_shares(weights in vec(1..=20_u8, 2..=6), away in 0..2_usize) {
            let total: usize = weights.iter().copied().map(usize::from).sum();
            let turns = Turns::new(&weights);
            let mut had = vec![0_usize; weights.len()];
            taken(&turns, total).into_iter().filter(|server| *server != away).for_each(|server| had[server] += 1);
            let shares: Vec<usize> =
                weights.iter().enumerate().map(|(server, weight)| if server == away { 0 } else { (*weight).into() }).collect();
            prop_assert_eq!(had, shares);
        }
    }
}
