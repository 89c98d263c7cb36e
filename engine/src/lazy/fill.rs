//! Filling an address space in the background, from the store where it can be
//! and by asking the source host where not.

use super::book::{Book, Standing};
use super::owed::Piece;
use super::space::{Space, Via};
use super::{Local, Urgency};
use crate::sys::uffd_copy::{Placed, Stop, Uffd};
use blip_transport::page::{PageAt, PageIndex};
use blip_transport::units::PAGE_SIZE;

impl Space {
    /// Asks the source host in the background for what the store did not have.
    pub(super) fn request_absent(&mut self, book: &mut Book) {
        while let Some(piece) = self.absent.front_mut() {
            let at = PageAt { space: self.origin, index: PageIndex(piece.origin) };
            if let Some(place) = self.owed.place_of(piece.origin) {
                match book.standing(at) {
                    Standing::Full => return,
                    Standing::MayRequest => book.request(at, Urgency::Background),
                    // Its answer makes every address space try again.
                    Standing::Requested => {}
                    // Another one has asked, and the answer came before we did.
                    Standing::Decided => {
                        self.retry.insert(place);
                    }
                }
            }
            piece.origin += 1;
            piece.count -= 1;
            if piece.count == 0 {
                self.absent.pop_front();
            }
        }
    }

    /// Fills up to `budget` pages; answers how many were looked at.
    pub(super) fn prefill(&mut self, book: &mut Book, budget: u64) -> u64 {
        let mut looked = 0;
        while looked < budget {
            let Some(piece) = self.next_piece(budget - looked) else { break };
            let upto = self.fill(book, piece);
            match self.soon.front_mut() {
                Some(span) => span.0 = upto,
                None => self.cursor = upto,
            }
            looked += upto - piece.place;
            if upto < piece.place + piece.count {
                break;
            }
        }
        looked
    }

    fn next_piece(&mut self, most: u64) -> Option<Piece> {
        while let Some(&(from, end)) = self.soon.front() {
            if let Some(piece) = self.owed.within(from, end).next() {
                return Some(piece.first(most));
            }
            self.soon.pop_front();
        }
        self.owed.next(self.cursor).map(|piece| piece.first(most))
    }

    /// Fills one piece from the store; answers the place it got to. Short of
    /// the end, the kernel wants to be heard first.
    fn fill(&mut self, book: &mut Book, piece: Piece) -> u64 {
        let n = piece.count as usize;
        let (mut pages, mut found) =
            (std::mem::take(&mut book.pages), std::mem::take(&mut book.found));
        book.source.local_run(self.origin, piece.dumped(), &mut pages[..n], &mut found[..n]);
        book.strike_lost(self.origin, piece.dumped(), &mut found[..n]);
        let mut i = 0;
        while i < n {
            let alike = found[i..n].iter().take_while(|&&kind| kind == found[i]).count();
            let got = match found[i] {
                Local::Absent => {
                    let (place, origin) = (piece.place + i as u64, piece.origin + i as u64);
                    self.absent.push_back(Piece { place, origin, count: alike as u64 });
                    alike
                }
                Local::Data => {
                    let bytes = pages[i..i + alike].as_flattened();
                    self.place(book, piece.place + i as u64, alike, Via::Store, |uffd, i, at, n| {
                        uffd.copy(at, &bytes[i * PAGE_SIZE..(i + n) * PAGE_SIZE])
                    })
                }
                Local::Zero => {
                    self.place(book, piece.place + i as u64, alike, Via::Zero, |uffd, _, at, n| {
                        uffd.zero(at, n as u64)
                    })
                }
            };
            i += got;
            if got < alike {
                break;
            }
        }
        (book.pages, book.found) = (pages, found);
        piece.place + i as u64
    }

    /// Places `count` pages from `page` by `put`, which gets the number of the
    /// first within these, its address, and how many to place. Answers how many
    /// it got done with.
    fn place(
        &mut self,
        book: &mut Book,
        page: u64,
        count: usize,
        from: Via,
        put: impl Fn(&Uffd, usize, u64, usize) -> Placed,
    ) -> usize {
        // The border of a mapping can lie anywhere in a run, and the kernel
        // takes no range that crosses one: halve until it does.
        let mut most = count;
        let mut done = 0;
        while done < count {
            let n = most.min(count - done);
            let next = page + done as u64;
            let placed = put(&self.uffd, done, next * PAGE_SIZE as u64, n);
            if placed.pages > 0 {
                self.in_place(book, next, placed.pages, from);
                done += placed.pages as usize;
                most = count;
            }
            match placed.stop {
                None => {}
                Some(Stop::Exists) => {
                    self.was_there(book, page + done as u64);
                    done += 1;
                }
                Some(Stop::Unregistered) if n > 1 => most = n / 2,
                Some(stop) => {
                    self.set_back(book, page + done as u64, stop);
                    break;
                }
            }
        }
        done
    }
}
