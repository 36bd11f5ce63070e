//! Graphs across sizes: what is recorded, what is updated, and that a node that is not
//! updated is noticed.

use super::control::found;
use super::lanes::{repeated, used_again};
use super::tune::{of_three_forms, row};
use super::*;
use crate::device::{self, Device, Node, Window};
use crate::exec::GraphCounts;

type Outputs = Vec<Vec<u8>>;

/// v = w + 1 for eight numbers, y = 2 (x + 1), and a copy of x + 1.
pub(super) fn mixed() -> Entry {
    let f32s = |name, dim, buffer| port(name, DType::F32, &[dim], buffer);
    Entry {
        inputs: vec![f32s("x", "n", 0), f32s("w", "8", 1)],
        outputs: vec![f32s("y", "n", 3), f32s("v", "8", 4), f32s("c", "n", 5)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("32", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Output),
            buffer("32", Place::Output),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![
            launch(0, &[1, 4], &["8"], "fixed"),
            launch(0, &[0, 2], &["n"], "add"),
            launch(2, &[2, 3], &["n"], "double"),
            copy(2, 5, "n * 4"),
        ],
        ..entry("mixed")
    }
}

/// Runs an entry on n numbers that another run does not have, `trip` for i64 scalars and
/// `go` for bools; all outputs.
fn give(s: &mut Session, n: usize, trip: i64, go: bool) -> crate::Result<Outputs> {
    let model = s.model().clone();
    let e = &model.program().entries[0];
    let data = |p: &Port| match p.dtype {
        DType::I64 => (vec![], trip.to_le_bytes().to_vec()),
        DType::Bool => (vec![], vec![go as u8]),
        _ => {
            let k = p.dims[0].eval(&[("n".into(), n as i64)].into()).unwrap() as usize;
            let x = (0..k).map(|i| (1000 * n + i) as f32);
            (vec![k], bytes(&x.collect::<Vec<f32>>()))
        }
    };
    let all: Vec<_> = e.inputs.iter().map(data).collect();
    let inputs: Vec<(&str, TensorRef)> = (e.inputs.iter().zip(&all))
        .map(|(p, (shape, bytes))| {
            let dtype = p.dtype;
            let t = TensorRef {
                dtype,
                shape,
                bytes,
            };
            (&p.name[..], t)
        })
        .collect();
    s.run(0, &inputs)?;
    let output = |i| s.output(i).unwrap().bytes.to_vec();
    Ok((0..e.outputs.len()).map(output).collect())
}

pub(super) fn counts(s: &Session) -> GraphCounts {
    s.graph_counts().unwrap()
}

/// A session, and one that starts every kernel by itself.
pub(super) struct Pair {
    pub(super) s: Session,
    plain: Session,
}

impl Pair {
    pub(super) fn of(p: &Program) -> Pair {
        let (s, mut plain) = (session(p), session(p));
        plain.set_graphs(false);
        Pair { s, plain }
    }

    /// Runs both and compares them.
    pub(super) fn run(&mut self, n: usize, trip: i64, go: bool) {
        let want = give(&mut self.plain, n, trip, go).unwrap();
        assert_eq!(give(&mut self.s, n, trip, go).unwrap(), want, "{n} {trip}");
        assert_eq!(counts(&self.plain), GraphCounts::default());
    }

    pub(super) fn sizes(&mut self, sizes: impl IntoIterator<Item = usize>) {
        sizes.into_iter().for_each(|n| self.run(n, 0, true));
    }
}

#[test]
fn sizes_that_grow_update_one_graph() {
    let mut pair = Pair::of(&program(vec![mixed()]));
    pair.sizes(1..=20);
    // The second run records. From the third on three of the four nodes have other sizes;
    // the other's memory does not move.
    let mut want = GraphCounts {
        recorded: 1,
        updated: 3 * 18,
        replayed: 19,
    };
    assert_eq!(counts(&pair.s), want);
    // The sizes that the graph holds: nothing to update.
    pair.sizes([20, 20]);
    want.replayed += 2;
    assert_eq!(counts(&pair.s), want);
    // Runs that are looked at kernel by kernel, and graphs after them.
    pair.s.set_profiling(true);
    pair.sizes([21]);
    assert_eq!(counts(&pair.s), want);
    pair.s.set_profiling(false);
    pair.sizes([22]);
    want.replayed += 1;
    want.updated += 3;
    assert_eq!(counts(&pair.s), want);
    assert_eq!(graphs(&pair.s), 1);
    pair.s.set_graphs(false);
    pair.sizes([23, 23]);
    assert_eq!((counts(&pair.s), graphs(&pair.s)), (want, 0));
}

#[test]
fn a_node_that_is_not_updated_is_noticed() {
    // The last size is larger than memory, and then not.
    for sizes in [&[4, 5, 6][..], &[9, 4, 5, 6]] {
        let (last, first) = sizes.split_last().unwrap();
        let run = |left_out: Option<usize>| {
            let mut s = session(&program(vec![mixed()]));
            for &n in first {
                give(&mut s, n, 0, true).unwrap();
            }
            let before = counts(&s).updated;
            if let Some(left_out) = left_out {
                s.leave_out_update(before + left_out);
            }
            let done = give(&mut s, *last, 0, true);
            (done, counts(&s).updated - before)
        };
        let (want, updates) = run(None);
        let want = want.unwrap();
        assert_eq!(updates, 3);
        for i in 0..updates {
            let found = run(Some(i)).0;
            assert!(found.is_err() || found.unwrap() != want, "{sizes:?}: {i}");
        }
    }
}

#[test]
fn sizes_that_come_again_get_graphs_of_their_own() {
    let mut pair = Pair::of(&program(vec![mixed()]));
    pair.sizes([5, 6, 7, 8, 9, 8, 7, 6, 5, 9, 6]);
    let before = counts(&pair.s);
    assert_eq!(graphs(&pair.s), 5);
    for _ in 0..3 {
        pair.sizes([5, 9, 8, 6, 7]);
    }
    let want = GraphCounts {
        replayed: before.replayed + 15,
        ..before
    };
    assert_eq!(counts(&pair.s), want);
    // Memory moves: addresses are other ones, and no graph is made anew.
    pair.sizes([700, 5, 6, 5, 6]);
    assert_eq!(counts(&pair.s).recorded, want.recorded + 1);
    // As many as are kept; then the one used longest ago is updated.
    pair.sizes((20..28).chain(20..28));
    assert_eq!(graphs(&pair.s), 8);
    let recorded = counts(&pair.s).recorded;
    pair.sizes((50..70).flat_map(|n| [n, n + 1, n, n - 5]));
    assert_eq!((counts(&pair.s).recorded, graphs(&pair.s)), (recorded, 8));
}

#[test]
fn each_form_has_a_graph() {
    // Up to 9, up to 40, and beyond. A row has 5 take the last form.
    let mut p = of_three_forms();
    p.gpu[0].tuned = vec![row("a PTX interpreter", 0, 5, 2)];
    let mut pair = Pair::of(&p);
    pair.sizes(1..=60);
    let mut want = counts(&pair.s);
    // What a form does comes up before it is recorded; that of the last one at 5.
    assert_eq!((want.recorded, want.replayed), (3, 60 - 3));
    assert_eq!(graphs(&pair.s), 3);
    pair.sizes(1..=60);
    want.replayed += 60;
    want.updated = counts(&pair.s).updated;
    assert_eq!(counts(&pair.s), want);
}

#[test]
fn loops_branches_and_stretches_take_other_sizes() {
    let mut pair = Pair::of(&program(vec![repeated()]));
    for n in 1..=12 {
        pair.run(n, n as i64 % 4, true);
    }
    // The body's second time records; then the first time of each run updates.
    assert_eq!(counts(&pair.s).recorded, 1);
    assert!(counts(&pair.s).replayed > 12, "{:?}", counts(&pair.s));
    let mut pair = Pair::of(&program(vec![used_again()]));
    pair.sizes(1..=12);
    assert_eq!(
        (counts(&pair.s).recorded, counts(&pair.s).replayed),
        (1, 11)
    );
    let branches = Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("go", DType::Bool, &[], 1),
        ],
        outputs: vec![port("y", DType::F32, &["n"], 3)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("1", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![Step::If {
            cond: 1,
            then: vec![launch(0, &[0, 2], &["n"], "then"), copy(2, 3, "n * 4")],
            otherwise: vec![launch(2, &[0, 2], &["n"], "else"), copy(2, 3, "n * 4")],
        }],
        ..entry("branches")
    };
    let mut pair = Pair::of(&program(vec![branches]));
    for n in 1..=12 {
        pair.run(n, 0, n % 3 == 0);
    }
    assert_eq!(
        (counts(&pair.s).recorded, counts(&pair.s).replayed),
        (2, 10)
    );
}

/// A step of a text: x of `past` goes into the state, y = 2 (x + 1) for `past` + 1 numbers,
/// and v = x + 1 for all.
fn decode() -> Entry {
    let mut write = launch(0, &[0, 4], &["1"], "write");
    if let Step::Launch(l) = &mut write {
        l.args.iter_mut().for_each(|a| a.1 = dim("past * 4"));
    }
    Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("past", DType::I64, &[], 1),
        ],
        outputs: vec![
            port("y", DType::F32, &["past + 1"], 3),
            port("s", DType::F32, &["64"], 4),
            port("v", DType::F32, &["n"], 5),
        ],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("8", Place::Input),
            buffer("(past + 1) * 4", Place::Arena),
            buffer("(past + 1) * 4", Place::Output),
            buffer("256", Place::Global(0)),
            buffer("n * 4", Place::Output),
        ],
        steps: vec![
            Step::BindDim {
                symbol: "past".into(),
                from: 1,
                max: Some(dim("n - 1")),
            },
            launch(0, &[0, 5], &["n"], "fixed"),
            write,
            launch(0, &[0, 2], &["past + 1"], "add"),
            launch(2, &[2, 3], &["past + 1"], "double"),
        ],
        ..entry("decode")
    }
}

#[test]
fn sizes_that_come_up_in_a_run_are_taken_as_well() {
    let mut p = program(vec![decode()]);
    p.globals.push(state("s", 64));
    let mut pair = Pair::of(&p);
    for past in 0..20 {
        pair.run(64, past, true);
    }
    // Three of four nodes have the size, one as an address.
    let mut want = GraphCounts {
        recorded: 1,
        updated: 3 * 18,
        replayed: 19,
    };
    assert_eq!(counts(&pair.s), want);
    pair.run(64, 19, true);
    want.replayed += 1;
    assert_eq!(counts(&pair.s), want);
    // Another text, shorter than memory by now.
    pair.s.reset().unwrap();
    pair.plain.reset().unwrap();
    for past in 0..10 {
        pair.run(64, past, true);
    }
    want.replayed += 10;
    want.updated += 3 * 10;
    assert_eq!(counts(&pair.s), want);
    // What a kernel finds: the steps behind it.
    let mut pair = Pair::of(&program(vec![found()]));
    pair.sizes(1..=12);
    assert_eq!(
        (counts(&pair.s).recorded, counts(&pair.s).replayed),
        (1, 11)
    );
}

#[test]
fn a_long_run_is_several_graphs() {
    // x + 1 to and fro, 129 times: two graphs, and the last step by itself.
    let to = |i: u32| if i == 128 { 3 } else { 1 + i % 2 };
    let from = |i: u32| if i == 0 { 0 } else { 2 - i % 2 };
    let e = Entry {
        inputs: vec![port("x", DType::F32, &["n"], 0)],
        outputs: vec![port("y", DType::F32, &["n"], 3)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Arena),
            buffer("n * 4", Place::Output),
        ],
        steps: (0..129)
            .map(|i| launch(0, &[from(i), to(i)], &["n"], "add"))
            .collect(),
        ..entry("long")
    };
    let mut pair = Pair::of(&program(vec![e]));
    pair.sizes(1..=5);
    let want = GraphCounts {
        recorded: 2,
        updated: 3 * 128,
        replayed: 2 * 4,
    };
    assert_eq!(counts(&pair.s), want);
    assert_eq!(run(&mut pair.s, 0, &[1.0; 5]).unwrap(), [130.0; 5]);
}

#[test]
fn a_launch_without_blocks_is_another_structure() {
    let mut pair = Pair::of(&program(vec![mixed()]));
    pair.sizes([3, 0, 4, 0, 5, 0, 0]);
    // With numbers and without: the copy is left out as well.
    assert_eq!(graphs(&pair.s), 2);
}

#[test]
fn a_kernel_that_fails_in_an_updated_graph_is_named() {
    let e = Entry {
        inputs: vec![
            port("x", DType::F32, &["n"], 0),
            port("at", DType::I64, &[], 1),
        ],
        outputs: vec![port("y", DType::F32, &["1"], 3)],
        buffers: vec![
            buffer("n * 4", Place::Input),
            buffer("8", Place::Input),
            buffer("n * 4", Place::Arena),
            buffer("4", Place::Output),
        ],
        steps: vec![
            launch(0, &[0, 2], &["n"], "add"),
            launch(1, &[2, 1, 3], &["n", "1"], "pick [it]"),
        ],
        ..entry("f")
    };
    let mut pair = Pair::of(&program(vec![e]));
    for n in 1..=8 {
        pair.run(n, n as i64 - 1, true);
        let e = give(&mut pair.s, n, n as i64, true).unwrap_err();
        assert!(e.code == "K0723" && e.message.contains("pick [it]"), "{e}");
        pair.run(n, 0, true);
    }
    assert_eq!(counts(&pair.s).recorded, 1);
}

/// The device by itself.
#[test]
fn graphs_do_what_their_nodes_hold() {
    let mut d = device::open(Name::Sim).unwrap();
    d.load(PTX).unwrap();
    let [x, y] = [0; 2].map(|_| d.alloc(16).unwrap());
    let kernels = ["increment", "double"].map(|k| d.kernel(k, 0).unwrap());
    let launch = |kernel: usize, n: u64, cluster: u32| {
        let words = [x, y, 0, 0, n].map(u64::to_le_bytes);
        let window = |at, writable| Window {
            at,
            len: 4 * n,
            writable,
        };
        Node::Launch(device::Launch {
            kernel: kernels[kernel],
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [cluster, 1, 1],
            shared: 0,
            params: words.concat().into(),
            windows: vec![window(x, false), window(y, true)].into(),
            label: "k".into(),
        })
    };
    let copy = |bytes| Node::Copy {
        from: y,
        to: x,
        bytes,
    };
    let graph = d.graph(&[launch(0, 1, 1), copy(4)]).unwrap();
    let after = |d: &mut Box<dyn Device>, graph| {
        d.fill(x, 16, 0).unwrap();
        d.replay(graph).unwrap();
        d.wait().unwrap();
        let mut out = [0; 16];
        d.download(x, &mut out).unwrap();
        numbers(&out)
    };
    assert_eq!(after(&mut d, &graph), [1.0, 0.0, 0.0, 0.0]);
    assert!(d.update(&graph, 0, &launch(0, 4, 1)).unwrap());
    assert_eq!(after(&mut d, &graph), [1.0, 0.0, 0.0, 0.0], "one is copied");
    assert!(d.update(&graph, 1, &copy(12)).unwrap());
    assert_eq!(after(&mut d, &graph), [1.0, 1.0, 1.0, 0.0]);
    for (at, node) in [
        (0, launch(1, 4, 1)),
        (0, launch(0, 4, 2)),
        (0, copy(4)),
        (1, launch(0, 4, 1)),
        (2, copy(4)),
    ] {
        assert_eq!(d.update(&graph, at, &node).unwrap_err().code, "K0807");
    }
    assert_eq!(after(&mut d, &graph), [1.0, 1.0, 1.0, 0.0]);
}
