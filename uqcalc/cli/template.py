"""The run file that `uqcalc run --template` prints: every key, unit and default."""

from __future__ import annotations


# A line "#key: value" is a key that is left out, with its default or a sample value.
RUN_FILE = """\
# Run file of uqcalc: molecular dynamics or a relaxation under a monitor.
#   uqcalc run run.yaml
# Paths are relative to this file. If a run is killed, repeat the command to continue.
# Keys after "#" show their default value; "sample" marks keys without a default.

structure: structure.xyz        # any file that ASE reads
#frame: -1                      # index of the frame; -1 is the last
#repeat: [1, 1, 1]              # copies of the cell along each cell vector
#species: [Na, Cl]              # sample; element of each type, for LAMMPS files

model: default                  # default, chgnet, sevennet, mace:FILE, mace_off:SIZE,
                                # mace_mp:SIZE, orb:NAME, uma:NAME:TASK,
                                # mattersim:1M, pet-mad, aimnet:NAME, ani:2x, ...
#probe: my.probe                # sample; default, chgnet and sevennet have one;
                                # [forces.probe, stress.probe] for several targets
#probe_atoms: [0, 1]            # sample; judge only these atoms, counted from 0
#device: auto                   # auto, cpu, cuda, cuda:N or mps
#dtype: float32                 # sample; float32 or float64

md:                             # remove this section for a relaxation
  ensemble: nvt                 # nve, nvt (Langevin) or npt
  steps: 2000
  timestep_fs: 0.5
  temperature_K: 300            # one number, or [start, end] for a linear ramp
  #friction_per_fs: 0.01        # nvt and npt
  #pressure_GPa: 0.0            # npt
  #barostat_fs: 1000.0          # npt
  #cell_shape: fixed            # npt: fixed or free
  #velocities: new              # new, or keep those of the structure
  #seed: 0

#relax:                         # in place of md
  #optimizer: BFGS              # BFGS, LBFGS or FIRE
  #fmax_eV_per_A: 0.05
  #steps: 500
  #cell: false                  # true: relax the cell, too
  #pressure_GPa: 0.0            # with cell: true

#force_delta:                   # limits: see uqcalc.calibrate_threshold
  #suspect_eV_per_A: 0.1        # sample
  #unreliable_eV_per_A: 0.2     # sample
  #interval: 1                  # steps between two readings
  #head: head.safetensors       # sample; for models without direct forces

#functional_spread:             # limits: see uqcalc.calibrate_threshold
  #perturbation: my.perturbation  # sample; from uqcalc perturb, for this model
  #suspect_eV_per_A: 0.1        # sample
  #unreliable_eV_per_A: 0.2     # sample
  #interval: 1                  # steps between two readings
  #members: 16                  # each costs one pass of the model

#policy:
  #suspect: 0.8                 # sample; SUSPECT below this P(reliable)
  #unreliable: 0.5              # sample; UNRELIABLE below this P(reliable)
  #promise: true                # sample; RELIABLE only within the guarantee
  #window: 20                   # sample; act if half of the last 20 steps
  #fraction: 0.5                # sample; is UNRELIABLE (default: half of 50 fs)
  #patience: 3                  # sample; or after 3 UNRELIABLE frames in a row
  #on_unreliable: halt          # halt, warn, harvest (go on, keep frames to label),
                                # rewind (go back) or ask (a reference decides)
  #max_harvest: 50              # sample; with harvest: largest number of frames
  #bond_change_fs: 25.0         # sample; md: act if bonds stay changed for this time
  #halting_guarantee: halting.json  # sample; md: from uqcalc certify-halting

#ask:                           # with on_unreliable: ask
  #reference: gfn2-xtb          # sample; or file.py:function
  #max_calls: 20
  #spacing: 50                  # steps between two calls

#rewind:                        # with on_unreliable: rewind
  #max_rewinds: 3
  #back_fs: 100.0
  #refresh: 0.5                 # share of the momenta that is drawn anew
  #seed: 0

outputs:
  trajectory: "{name}_frames.xyz"   # {name} is the name of this file without ending
  #interval: 10                 # steps between frames, and between saved states
  #log: "{name}.jsonl"
  #flagged: "{name}_flagged.xyz"    # UNRELIABLE frames; null: do not write them
  #max_flagged: 100
  #labelled: "{name}_labelled.xyz"  # sample; with ask: frames with REF_ labels
  #last: "{name}_last.xyz"
"""
