//! Attention on Hopper's tensor cores (`wgmma`), of f16 or bf16 with sums in f32, in the
//! shape of FlashAttention-3 (Shah et al. 2024).
//!
//! A block has three groups of four warps and takes 128 queries of one head. One group
//! copies: the queries, then parts of keys and of values in turn, two places each. It needs
//! few registers and gives the others away. There are two forms of it: by tiles
//! ([`attention_tiles`]), and for every stride and start (`attention_copies.rs`). Two groups
//! multiply (`attention_products.rs`), 64 queries each.

use super::attention_rows::{self, Block, Softmax};
use super::attention_tiles::{self, Maps, Side};
use super::nest::divide;
use super::panels::{GROUP, Panels};
use super::{GpuKernel, Unit, attention, entry_of};
use crate::Size;
use crate::attention::AttentionSpec;
use crate::softmax::Bounds;
use kiln_codegen::ptx::{B32, Half, Order, Pred, Reg};
use kiln_codegen::{Emitter, GpuTarget, Val};

/// Groups of four warps that multiply, and threads of a block.
pub(super) const GROUPS: i64 = 2;
const THREADS: i64 = GROUP * (1 + GROUPS);

/// Queries of a group, and of a block.
pub(super) const GROUP_ROWS: i64 = 64;
pub(super) const QUERIES: i64 = GROUPS * GROUP_ROWS;

/// Places of parts of keys, and of values.
const STAGES: i64 = 2;

/// How queries, keys and values come to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By tiles, which one thread asks for.
    Tiles,
    /// By copies of 16 bytes or less, which all threads of a group make.
    Copies,
}

impl Way {
    /// Registers of a thread that copies, and of one that multiplies: together the 168 that
    /// each of three groups starts with.
    pub(super) const fn registers(self) -> (u32, u32) {
        match self {
            Way::Tiles => (24, 240),
            Way::Copies => (40, 232),
        }
    }

    const fn is_whole(self) -> bool {
        let (few, many) = self.registers();
        few + GROUPS as u32 * many == 3 * 168
    }
}

const _: () = assert!(Way::Tiles.is_whole() && Way::Copies.is_whole());

/// Of the latter, those that scores, rounded weights and results may have.
const ROOM: i64 = 188;

/// What else a thread keeps.
const OTHERS: i64 = 32;

/// The most keys of a part.
const KEYS: i64 = 128;

/// The largest heads.
const MOST: i64 = 256;

/// Whether the kernel serves the problem, and serves it best: few queries leave most of a
/// block idle.
pub(super) fn serves(spec: &AttentionSpec, target: &GpuTarget) -> Option<Half> {
    let half = attention_rows::halves(spec)?;
    let few = spec.block <= 16 || matches!(spec.queries, Size::Const(n) if n <= GROUP_ROWS);
    let small = spec.features <= MOST && spec.values <= MOST;
    (target.is_hopper() && small && !few).then_some(half)
}

/// Features and values, to whole instructions, and keys of a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub way: Way,
    pub features: i64,
    pub values: i64,
    pub keys: i64,
}

/// What lies in shared memory in as many places as there are stages.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    Keys,
    Values,
}

impl Shape {
    fn of(spec: &AttentionSpec, way: Way, target: &GpuTarget) -> Shape {
        let (features, values) = (up(spec.features, 16), up(spec.values, 16));
        // Of a thread's row of results half a register each, of its scores too, and of
        // weights that are being multiplied a quarter.
        let (room, most) = match attention_rows::demanding(spec) {
            // Addresses and what is read, or steps of functions.
            true => (ROOM - 24, KEYS / 2),
            false => (ROOM, KEYS),
        };
        let keys = (room - values / 2) * 4 / 3 / 16 * 16;
        let all = |keys: i64| Shape {
            way: Way::Tiles,
            features,
            values,
            keys,
        };
        let fits = |keys: &i64| all(*keys).bytes() <= i64::from(target.shared_per_block);
        // As tiles have room for: the order of sums, and so every bit, is both ways the same.
        let keys = (1..=keys.clamp(16, most) / 16).rev().map(|n| 16 * n);
        let keys = keys.into_iter().find(fits).unwrap_or(16);
        Shape { way, ..all(keys) }
    }

    /// Registers of scores, of weights that are being multiplied and of results.
    fn registers(self) -> i64 {
        self.keys / 2 + self.keys / 4 + self.values / 2
    }

    /// Eights of keys whose scores are worked out at once where they are demanding: an address
    /// and a number each for two keys of two queries, and as much again that the assembler
    /// has under way.
    fn eights(self) -> usize {
        let free = i64::from(self.way.registers().1) - self.registers() - OTHERS;
        (free / 24).max(1) as usize
    }

    /// Elements of a row in shared memory: to whole tiles, or to whole instructions.
    fn row(self, elements: i64) -> i64 {
        match self.way {
            Way::Tiles => up(elements, attention_tiles::WIDE),
            Way::Copies => elements,
        }
    }

    pub(super) fn queries(self) -> Panels {
        Panels {
            rows: QUERIES,
            elements: self.row(self.features),
        }
    }

    pub(super) fn part(self, which: Part) -> Panels {
        let elements = match which {
            Part::Keys => self.features,
            Part::Values => self.values,
        };
        Panels {
            rows: self.keys,
            elements: self.row(elements),
        }
    }

    /// Where the first place of keys or values is, behind the queries.
    pub(super) fn start(self, which: Part) -> i64 {
        let keys = self.queries().bytes();
        match which {
            Part::Keys => keys,
            Part::Values => keys + STAGES * self.part(Part::Keys).bytes(),
        }
    }

    /// Where barriers are: those of copied parts, those of parts that have been read, then
    /// that of queries.
    fn barriers(self) -> i64 {
        self.start(Part::Values) + STAGES * self.part(Part::Values).bytes()
    }

    fn bytes(self) -> i64 {
        self.barriers() + 8 * (4 * STAGES + 1)
    }
}

fn up(n: i64, to: i64) -> i64 {
    (n + to - 1) / to * to
}

/// The forms: that by tiles, where strides that are known allow it, and the one for all.
pub(super) fn emit(
    spec: &AttentionSpec,
    half: Half,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    let tiled = Shape::of(spec, Way::Tiles, target);
    let tiles = attention_tiles::sides(spec, tiled).map(|sides| {
        let kernel = form(
            spec,
            half,
            tiled,
            (&entry_of(name, "tiles"), target),
            Some(&sides),
        );
        GpuKernel {
            tiles: sides.map(|s| s.tile).to_vec(),
            ..kernel
        }
    });
    let copied = Shape::of(spec, Way::Copies, target);
    let copies = form(spec, half, copied, (name, target), None);
    tiles.into_iter().chain([copies]).collect()
}

fn form(
    spec: &AttentionSpec,
    half: Half,
    shape: Shape,
    named: (&str, &GpuTarget),
    sides: Option<&[Side; 3]>,
) -> GpuKernel {
    let block = (THREADS, QUERIES);
    let kernel = attention::kernel(spec, named, block, shape.bytes(), |e, cx, _| {
        let maps = sides.map(|s| Maps::declare(e, s));
        let shared = e.kernel_mut().dynamic_shared();
        let attend = Attend {
            softmax: Softmax {
                spec,
                cx,
                pause: attention_rows::demanding(spec).then(|| shape.eights()),
            },
            half,
            shape,
            shared,
            bounds: Bounds::of(&spec.exprs, spec.score),
        };
        attend.write(e, maps.as_ref());
    });
    GpuKernel {
        unit: Unit::Wgmma,
        ..kernel
    }
}

pub(super) struct Attend<'a> {
    pub softmax: Softmax<'a>,
    pub half: Half,
    pub shape: Shape,
    pub shared: Reg<B32>,
    pub bounds: Bounds,
}

/// The keys that a block walks.
pub(super) struct Walk {
    /// The first one, and parts.
    pub low: Val,
    pub parts: Val,
    /// Between these all queries see all keys, as far as the bounds go.
    pub inner: (Val, Val),
}

/// Whose turn it is: a part's place, and the parity of the phases of its barriers.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub stage: Reg<B32>,
    parity: Reg<B32>,
}

/// Which of a part's barriers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bar {
    /// Its copies are there.
    Full(Part),
    /// It has been read.
    Empty(Part),
}

impl Attend<'_> {
    fn write(mut self, e: &mut Emitter, maps: Option<&Maps>) {
        let spec = self.softmax.spec;
        let b = Block::of(e, &self.softmax.cx, spec, QUERIES);
        let walk = self.walk(e, &b);
        self.barriers(e);
        let thread = e.kernel_mut().thread();
        let copies = e
            .kernel_mut()
            .compare(Order::Lt, thread, GROUP as i32, false);
        let copies = e.from_pred(copies);
        e.either(
            copies,
            &[],
            &mut self,
            |e, s| {
                // Without it ptxas ignores that registers change hands.
                e.kernel_mut().set_resident(1);
                let (few, _) = s.shape.way.registers();
                e.kernel_mut().registers(few, false);
                match maps {
                    Some(maps) => s.copy_tiles(e, maps, &b, &walk),
                    None => s.copy_all(e, &b, &walk),
                }
                vec![]
            },
            |e, s| {
                s.attend(e, &b, &walk);
                vec![]
            },
        );
    }

    fn walk(&mut self, e: &mut Emitter, b: &Block) -> Walk {
        let (left, high) = (e.sub(b.queries, b.first), e.i64(QUERIES));
        let rows = e.min(left, high, false);
        let at = [b.batch, b.head, b.first, rows];
        let cx = &mut self.softmax.cx;
        let (low, end) = self.bounds.range(e, cx, at, b.keys);
        let inner = self.bounds.inner(e, cx, at, b.keys);
        let (step, known) = (e.i64(self.shape.keys), Some(self.shape.keys));
        let (low, _) = divide(e, low, step, known);
        let low = e.mul(low, step);
        let (less, zero) = (e.i64(self.shape.keys - 1), e.i64(0));
        let left = e.sub(end, low);
        let left = e.max(left, zero, false);
        let up = e.add(left, less);
        let (parts, _) = divide(e, up, step, known);
        Walk { low, parts, inner }
    }

    /// Makes the barriers, at which every warp arrives once; of those that copy by tiles
    /// one thread.
    fn barriers(&self, e: &mut Emitter) {
        let k = e.kernel_mut();
        let thread = k.thread();
        let first = k.compare(Order::Eq, thread, 0, false);
        let at = k.add(self.shared, self.shape.barriers() as i32);
        let copy = match self.shape.way {
            Way::Tiles => 1,
            Way::Copies => GROUP / 32,
        };
        let counts = [copy, GROUPS * GROUP / 32].map(|n| [n; 2 * STAGES as usize]);
        k.if_then(first, |k| {
            for (i, &n) in (0..).zip(counts.as_flattened().iter().chain([&1])) {
                let bar = k.add(at, 8 * i);
                k.barrier_init(bar, n as u32);
            }
            k.fence_barriers();
        });
        k.barrier();
    }

    /// The barrier of queries that come by tiles; other ones come with the first keys.
    pub(super) fn queries_bar(&self, e: &mut Emitter) -> Reg<B32> {
        let at = self.shape.barriers() + 8 * 4 * STAGES;
        e.kernel_mut().add(self.shared, at as i32)
    }

    /// The first key of a part.
    pub(super) fn key(&self, e: &mut Emitter, walk: &Walk, part: Val) -> Val {
        let keys = e.i64(self.shape.keys);
        let skip = e.mul(part, keys);
        e.add(walk.low, skip)
    }

    /// The place of a part in shared memory.
    pub(super) fn place(&self, e: &mut Emitter, which: Part, turn: Turn) -> Reg<B32> {
        let size = self.shape.part(which).bytes() as i32;
        let k = e.kernel_mut();
        let first = k.add(self.shared, self.shape.start(which) as i32);
        k.mad(turn.stage, size, first)
    }

    pub(super) fn turn(&self, e: &mut Emitter, part: Val) -> Turn {
        let part = e.long(part);
        let k = e.kernel_mut();
        let part = k.low(part);
        let round = k.shr(false, part, STAGES.trailing_zeros());
        Turn {
            stage: k.bitwise("and", part, STAGES as i32 - 1),
            parity: k.bitwise("and", round, 1),
        }
    }

    pub(super) fn bar(&self, e: &mut Emitter, which: Bar, turn: Turn) -> Reg<B32> {
        let kind = match which {
            Bar::Full(Part::Keys) => 0,
            Bar::Full(Part::Values) => 1,
            Bar::Empty(Part::Keys) => 2,
            Bar::Empty(Part::Values) => 3,
        };
        let start = self.shape.barriers() + 8 * STAGES * kind;
        let k = e.kernel_mut();
        let at = k.add(self.shared, start as i32);
        k.mad(turn.stage, 8, at)
    }

    /// Waits until a part has been copied; or, to copy, until the one before in its place
    /// has been read (of the first ones there is none, and the other parity is past).
    pub(super) fn wait(&self, e: &mut Emitter, which: Bar, turn: Turn) {
        let bar = self.bar(e, which, turn);
        let k = e.kernel_mut();
        let parity = match which {
            Bar::Full(_) => turn.parity,
            Bar::Empty(_) => k.bitwise("xor", turn.parity, 1),
        };
        k.barrier_wait(bar, parity);
    }

    /// The warp arrives, by the lane that is `first`.
    pub(super) fn arrive(&self, e: &mut Emitter, which: Bar, turn: Turn, first: Reg<Pred>) {
        let bar = self.bar(e, which, turn);
        e.kernel_mut().guarded(first, |k| k.barrier_arrive(bar));
    }
}

/// Whether the thread is its warp's first.
pub(super) fn first_lane(e: &mut Emitter) -> Reg<Pred> {
    let k = e.kernel_mut();
    let lane = k.lane();
    k.compare(Order::Eq, lane, 0, false)
}
