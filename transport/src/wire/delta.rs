//! What a delta is: the bytewise XOR of two pages.
//!
//! Its own inverse, and mostly zero when little changed, which is what the
//! compression of the batch is for.

use crate::page::PageBytes;
use crate::units::PAGE_SIZE;

/// `a ⊕ b`, byte by byte.
pub(crate) fn xor(a: &PageBytes, b: &PageBytes) -> PageBytes {
    let mut out = [0; PAGE_SIZE];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a ^ b;
    }
    out
}
