"""A simulated shop with known causes: its tables look like any shop's, and its truth can be asked.

`generate` writes a dataset, a scenario's `faults` say what is wrong in it, `meeting` what meets one of them. The true
probabilities are in the folder `truth` and in `training.world.oracle`, which nothing that trains or serves reads.

    scenario   every number, in dataclasses
    scenarios  files that say what is other than in the plain shop; the shipped ones are in shipped/
    shop       what stands before any parcel: calendar, range, warehouses, lanes, customers
    decisions  the state of parcels when they are packed
    equations  from that state to true probabilities
    outcomes   chance, and when the shop learns of what happened
    tables     the six tables and dataset.toml
    truth      the truth as files
    faults     what in the tables meets a planted fault
    oracle     the truth, and what would have been
    acting     what every action would do, and the shop in which some were done
    figures    a shop in numbers, its tables beside its truth; picture draws them
"""

from training.world.equations import OWNERS
from training.world.faults import meeting
from training.world.scenario import FAULT_KINDS, PLANTED_FAULTS, Fault, Scenario
from training.world.scenarios import scenario, shipped, to_toml
from training.world.tables import generate

__all__ = [
    "FAULT_KINDS",
    "OWNERS",
    "PLANTED_FAULTS",
    "Fault",
    "Scenario",
    "generate",
    "meeting",
    "scenario",
    "shipped",
    "to_toml",
]
