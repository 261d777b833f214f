"""The report: facts (``prunus.json``) -> one self-contained HTML file, terminal tables and the model card.

    prunus.json -> read_facts -> RunFacts -> render_html | summary_table | model_card

Nothing here measures or trains: what is not in the facts reads "not measured".
"""
