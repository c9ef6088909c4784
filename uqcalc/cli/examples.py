"""The end of every help text: examples and the link to the documentation."""

from __future__ import annotations


DOCUMENTATION = "https://uqcalc.github.io/uqcalc/"
# Command -> lines that can be copied; a backslash at the end continues a line.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("uqcalc demo", "uqcalc info default", "uqcalc fit --help"),
    "demo": ("uqcalc demo --no-crystal --output demo",),
    "fit": (
        "uqcalc fit labelled.xyz --group molecule -o my.probe",
        'uqcalc fit labelled.xyz --boundary "50 meV/angstrom" \\',
        "    --model mace:my.model --cache features",
        "uqcalc fit dft.xyz --forces-key forces --target forces",
        "uqcalc fit --labels pbe-crystals \\",
        "    --model mace_mp:medium -o mp.probe",
    ),
    "certify": (
        "uqcalc certify my.probe held_out.xyz --group molecule",
        "uqcalc certify my.probe held_out.xyz --risk 0.1 \\",
        '    --tolerance "50 meV/angstrom" -o certified.probe',
    ),
    "certify-halting": (
        "uqcalc certify-halting run*.jsonl \\",
        '    --tolerance "200 meV/angstrom" -o halting.json',
        "uqcalc certify-halting run*.xyz --probe my.probe \\",
        '    --timestep 5 --tolerance "200 meV/angstrom"',
    ),
    "adapt": (
        "uqcalc adapt chgnet mine.xyz -o mine.probe",
        "uqcalc adapt my.probe mine.xyz --group run \\",
        "    --model mace:my.model -o mine.probe",
    ),
    "distill": (
        "uqcalc distill frames.xyz --model chgnet \\",
        "    -o head.safetensors",
    ),
    "perturb": (
        "uqcalc perturb labelled.xyz --group molecule \\",
        "    -o my.perturbation",
        "uqcalc perturb labelled.xyz --model chgnet \\",
        "    --group formula -o chgnet.perturbation",
    ),
    "evaluate": (
        "uqcalc evaluate my.probe test.xyz",
        "uqcalc evaluate chgnet test.xyz --json > scores.json",
        "uqcalc evaluate my.probe - -o - < test.xyz | jq .report",
        "uqcalc evaluate test.xyz --perturbation my.perturbation",
    ),
    "annotate": (
        "uqcalc annotate md.traj -o judged.xyz",
        "uqcalc annotate md.traj -o judged.xyz \\",
        "    --model mace:my.model --probe my.probe",
        "uqcalc annotate - -o - --quiet < md.xyz > judged.xyz",
    ),
    "features": (
        "uqcalc features md.traj -o features.h5",
        "uqcalc features md.traj -o features.h5 \\",
        "    --model mace:my.model --index ::10",
    ),
    "attack": (
        "uqcalc attack start.xyz -o to_label.xyz \\",
        "    --model orb:orb-v3-direct-20-mpa",
    ),
    "select": (
        "uqcalc select flagged.xyz -n 50 -o chosen.xyz",
        "uqcalc select one.xyz two.xyz -n 50 --group run \\",
        "    --model mace:my.model -o chosen.xyz",
    ),
    "label": (
        "uqcalc label chosen.xyz -o labelled.xyz \\",
        "    --reference gfn2-xtb --workers 2",
        "uqcalc label chosen.xyz -o labelled.xyz \\",
        "    --reference my_dft.py:reference",
    ),
    "loop": ("uqcalc loop loop.yaml",),
    "info": (
        "uqcalc info my.probe",
        "uqcalc info chgnet",
        "uqcalc info run.jsonl --json | jq .end",
    ),
    "plot": (
        "uqcalc plot run.jsonl -o run.png",
        "uqcalc plot flagged.xyz --shade importance -o frame.svg",
    ),
    "report": (
        "uqcalc report run.jsonl -o report.html",
        "uqcalc report run.jsonl run_flagged.xyz md_judged.xyz \\",
        "    --model default -o report.html",
        "uqcalc report judged.xyz -o report.html",
    ),
    "watch": (
        "uqcalc watch",
        "uqcalc watch run.jsonl --once",
        "uqcalc watch . --web --port 8741",
    ),
    "run": ("uqcalc run --template > run.yaml", "uqcalc run run.yaml"),
}
# Command -> one line in the list of commands, short enough for 60 columns.
SUMMARIES = {
    "demo": "Heat a molecule until its potential fails.",
    "fit": "Fit a probe to labelled frames.",
    "certify": "Add a guarantee to a probe.",
    "certify-halting": "Guarantee that failing runs are halted.",
    "adapt": "Adapt a probe to one system with few labels.",
    "distill": "Fit a direct-force head to a potential.",
    "perturb": "Train noise in a potential to get a spread.",
    "evaluate": "Score a probe on labelled frames.",
    "annotate": "Write the reliability of every frame of a trajectory.",
    "features": "Write the features of all atoms of a trajectory.",
    "attack": "Find structures of large Force Delta.",
    "select": "Choose flagged frames to label.",
    "label": "Compute reference values of frames.",
    "loop": "Run, select, label, train, again.",
    "info": "Show the contents of a probe, signal or log.",
    "plot": "Draw the timeline of a run, or a structure.",
    "report": "Write a page about finished runs.",
    "watch": "Look at running simulations.",
    "run": "Run dynamics or a relaxation from a file.",
}
STATUS = (
    "Exit status: 0 done, 1 error, 2 the command line cannot be read, 3 a run was "
    "halted by its monitor, 130 stopped by Ctrl-C."
)


def epilog(command: str = "", more: str = "") -> str:
    r"""Return the text below the options; ``\b`` keeps line breaks."""
    lines = "\n".join(f"  {line}" for line in EXAMPLES[command])
    parts = [f"\b\nExamples:\n{lines}", more, f"Documentation: {DOCUMENTATION}"]
    return "\n\n".join(part for part in parts if part)
