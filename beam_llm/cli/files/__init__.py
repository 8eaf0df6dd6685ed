"""Files of records in and out, as plain generators: read exactly or refused, written completely or
not at all.

records         Source, Row, Answer; a row's digest; exact JSON
sources         files by name, glob and format; text_files with jsonl_reader and csv_reader;
                parquet_reader with arrow_values
remote          gs:// and others: which files there are, or in time why that isn't known
survey          reads all inputs once before anything is paid
writers         rows with their answers: target, csv_cells, parquet_writer
"""
