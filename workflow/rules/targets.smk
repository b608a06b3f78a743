# Names that a user may ask for: every task (its comparison), every group (its comparisons and its page), every family
# (all runs of its methods), every run's folder.

for _task in [comparison.task for comparison in PROJECT.comparisons]:

    rule:
        name:
            _task
        input:
            PROJECT.page(_task),
        localrule: True


for _group in PROJECT.groups():

    rule:
        name:
            _group
        input:
            PROJECT.group_targets(_group),
        localrule: True


for _family in CATALOGUE.families():
    if PROJECT.family_targets(_family):

        rule:
            name:
                _family
            input:
                PROJECT.family_targets(_family),
            localrule: True


for _folder in [PROJECT.run_folder(run) for run in PROJECT.runs()]:

    rule:
        name:
            _folder
        input:
            f"{_folder}/scores.json",
        localrule: True
