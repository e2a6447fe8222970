"""A simulated shop with known causes: its tables look like any shop's, and its truth can be asked.

`generate` writes a dataset, `PLANTED_FAULTS` says what is wrong in it, `meeting` what meets one of them. The true
probabilities are in `training.world.oracle`, which nothing that trains or serves imports.

    scenario   every number, in dataclasses
    shop       what stands before any parcel: calendar, range, warehouses, lanes, customers
    decisions  the state of parcels when they are packed
    equations  from that state to true probabilities
    outcomes   chance, and when the shop learns of what happened
    tables     the six tables and dataset.toml
    faults     what in the tables meets a planted fault
    oracle     the truth
"""

from training.world.faults import meeting
from training.world.scenario import PLANTED_FAULTS, Fault, Scenario
from training.world.tables import generate

__all__ = ["PLANTED_FAULTS", "Fault", "Scenario", "generate", "meeting"]
