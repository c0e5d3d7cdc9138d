-- CRC-32C of each block of 64 KiB of a data file, base64 of little-endian numbers; NULL for files written before.

ALTER TABLE wattlake_file ADD COLUMN block_sums TEXT;
