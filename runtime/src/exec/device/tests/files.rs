//! What artifacts say about GPUs: missing, foreign and damaged.

use super::*;
use crate::{Error, Fault};

fn open(program: &Program, ptx: &[u8], target: Option<&str>) -> Result<Session, Error> {
    let model = Model::without_code(artifact(program, ptx)?);
    Session::on(model, 1, Name::Sim, target)
}

#[test]
fn the_target_is_chosen_and_a_missing_one_is_named() {
    let mut p = program(vec![chain()]);
    let good = |p: &Program, t| open(p, PTX.as_bytes(), t).map(|s| s.runs());
    assert!(good(&p, None).unwrap().starts_with("sm_80 on sim"));
    assert!(good(&p, Some("sm_80")).is_ok());
    let e = good(&p, Some("sm_90a")).unwrap_err();
    assert_eq!((e.code, e.exit_code()), ("K0804", 1));
    assert!(
        e.message.contains("no code for sm_90a, only for sm_80"),
        "{e}"
    );
    p.gpu.clear();
    let e = good(&p, None).unwrap_err();
    assert!(e.code == "K0804" && e.help.unwrap().contains("--target sm_80"));
    // Code for devices alone is none for the CPU.
    let model = model(&program(vec![chain()]));
    assert_eq!(Session::new(model, 1).err().unwrap().code, "K0704");
}

#[test]
fn damaged_parts_are_refused() {
    type Change = fn(&mut Gpu);
    let changes: [(&str, Change); 13] = [
        ("section", |g| g.section = 7),
        ("kernels are there", |g| g.kernels.truncate(2)),
        ("no GPU target", |g| g.target = "x86-64-v3".into()),
        ("threads", |g| g.kernels[1][0].passes[0].block = [0, 1, 1]),
        ("threads", |g| {
            g.kernels[1][0].passes[0].block = [1024, 2, 1]
        }),
        ("threads", |g| g.kernels[1][0].passes[0].block = [1, 1, 65]),
        ("clusters", |g| {
            g.kernels[0][0].passes[0].cluster = [0, 1, 1]
        }),
        ("clusters", |g| {
            g.kernels[0][0].passes[0].cluster = [u32::MAX; 3]
        }),
        ("shared memory", |g| {
            g.kernels[0][0].passes[0].shared = 1 << 20
        }),
        ("no form for every launch", |g| g.kernels[0].clear()),
        ("no launch at all", |g| g.kernels[0][0].passes.clear()),
        ("no form for every launch", |g| {
            g.kernels[0][0].when = vec![(dim("p0"), dim("9"))];
        }),
        ("a tile of [64, 300] elements", |g| {
            let mut tiled = g.kernels[0][0].clone();
            tiled.tiles = vec![Tile {
                arg: 0,
                dtype: DType::F16,
                sizes: vec![dim("p0"), dim("4")],
                strides: vec![dim("p0")],
                tile: vec![64, 300],
            }];
            g.kernels[0].insert(0, tiled);
        }),
    ];
    for (what, change) in changes {
        let mut p = program(vec![chain()]);
        change(&mut p.gpu[0]);
        let e = artifact(&p, PTX.as_bytes()).err().unwrap();
        assert_eq!((e.code, e.fault), ("K0703", Fault::Input), "{e}");
        assert!(e.message.contains(what), "{e}");
    }
    let mut p = program(vec![chain()]);
    if let Step::Launch(l) = &mut p.entries[0].steps[0] {
        l.writes = 3;
    }
    let e = artifact(&p, PTX.as_bytes()).err().unwrap();
    assert_eq!(e.code, "K0703", "{e}");
}

#[test]
fn text_that_is_no_module_is_refused() {
    let p = program(vec![chain()]);
    let code = |ptx: &[u8]| open(&p, ptx, None).err().unwrap().code;
    assert_eq!(code(&[0xff, 0xfe]), "K0703");
    assert_eq!(code(b""), "K0805");
    assert_eq!(
        code(b".version 7.1\n.target sm_80\n.address_size 64\nnonsense"),
        "K0805"
    );
    let cut = PTX.split(".visible .entry below").next().unwrap();
    assert_eq!(
        code(cut.as_bytes()),
        "K0705",
        "a kernel that the plan names"
    );
}

#[test]
fn grids_that_no_device_has_are_errors() {
    let mut p = program(vec![chain()]);
    p.gpu[0].kernels[0][0].passes[0].grid[1] = dim("p0 * 100000");
    let mut s = open(&p, PTX.as_bytes(), None).unwrap();
    let e = run(&mut s, 0, &[1.0; 3]).unwrap_err();
    assert_eq!(e.code, "K0720", "{e}");
    assert!(e.message.contains("first: 300000 blocks"), "{e}");
}

/// A selection's launch is of a kernel that devices alone have, and of what it takes.
#[test]
fn damaged_selections_are_refused() {
    let selection = |change: fn(&mut Launch)| {
        let Step::Launch(mut l) = launch(4, &[0, 1, 2], &["1", "n", "1", "n"], "best") else {
            unreachable!("that is a launch");
        };
        l.writes = 2;
        change(&mut l);
        let mut p = program(vec![Entry {
            buffers: vec![
                buffer("n * 4", Place::Input),
                buffer("n * 4", Place::Arena),
                buffer("n * 8", Place::Output),
            ],
            inputs: vec![port("x", DType::F32, &["n"], 0)],
            outputs: vec![port("i", DType::I64, &["n"], 2)],
            steps: vec![Step::TopK {
                launch: l,
                dtype: DType::F32,
                dims: vec![dim("n")],
                axis: 0,
                k: dim("n"),
                largest: true,
            }],
            ..entry("best")
        }]);
        p.kernels.truncate(4);
        p.device_kernels = vec![KERNELS[4].into()];
        open(&p, PTX.as_bytes(), None).map(|_| ())
    };
    selection(|_| {}).unwrap();
    type Change = fn(&mut Launch);
    let changes: [Change; 6] = [
        |l| l.variants[0].kernel = 3,
        |l| l.variants[0].kernel = 5,
        |l| l.variants.clear(),
        |l| l.writes = 1,
        |l| l.args[1].1 = Dim::ONE,
        |l| l.args.truncate(2),
    ];
    for change in changes {
        let e = selection(change).unwrap_err();
        assert!(
            e.code == "K0703" && e.message.contains("a selection"),
            "{e}"
        );
    }
}
